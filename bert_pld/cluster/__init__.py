"""Many processes as one run: ranks, signals, the watchdog over all ranks, the lock on a run's folder."""
