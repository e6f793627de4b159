"""From documents to shards: splits, vocabulary, token ids, training rows, shard files."""
