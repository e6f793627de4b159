"""From shards on disk to masked micro-batches: shards → order → masking → loader."""
