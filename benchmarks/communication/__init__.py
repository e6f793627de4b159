"""Bytes and times of communication between ranks, against the cost model."""
