"""Fine-tuning an encoder on a task: batches, the loop, stopping and continuing, all fine-tunings of a command."""
