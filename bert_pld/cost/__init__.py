"""Predicted cost of a configuration: FLOPs, memory, communication, and step times on many GPUs."""
