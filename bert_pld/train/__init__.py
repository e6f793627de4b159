"""Training: setup → loop, with optimizers, schedulers, metrics, evaluation, checkpoints and preemption beside it."""
