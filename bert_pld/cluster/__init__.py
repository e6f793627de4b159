"""Many processes as one run: which rank this is, signals, the watchdog over ranks, the lock on a run's folder."""
