"""Training: the run put together, the loop, its engine, optimizer, metrics and evaluation."""
