"""From text to shards: reading, cleaning, sentence splitting, deduplication, WordPiece and BERT's training rows.

`python -m data_prep build` makes a data directory, in the format of `bert_pld.data.shards`, for `bert_pld.pretrain`.
"""
