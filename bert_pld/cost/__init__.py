"""What a configuration costs, predicted: FLOPs, memory, bytes between ranks, step times on many GPUs."""
