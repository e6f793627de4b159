"""Training: the run put together with its engine, the loop with evaluation, optimizers, metrics and their records."""
