"""Data preparation beside bare tokenization and the approach of other projects."""
