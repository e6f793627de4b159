"""From text to shards: reading, cleaning, sentence splitting, WordPiece and BERT instances, run as a list of tasks.

`python -m data_prep build` makes a data directory that `bert_pld.data.shards` describes and `bert_pld.pretrain` reads.
"""
