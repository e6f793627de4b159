"""Bytes and times of what ranks exchange, against the cost model."""
