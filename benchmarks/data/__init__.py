"""Data preparation against bare tokenization and the approach of other projects."""
