"""From text to shards: reading, cleaning, sentence splitting, deduplication, tokenization and BERT's training rows.

`python -m data_prep build` makes a data directory for `bert_pld.pretrain`, in the format of `bert_pld.data.shards` or
`bert_pld.data.nvidia_format`.
"""
