"""Data preparation against bare tokenization and the peers' way."""
