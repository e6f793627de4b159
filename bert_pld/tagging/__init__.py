"""Tagging words, such as the recognition of names: files in CoNLL's format, and seqeval's figures."""
