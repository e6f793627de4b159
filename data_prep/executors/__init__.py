"""Where a build's tasks run: on this machine, as Slurm job arrays, or on a Ray cluster."""
