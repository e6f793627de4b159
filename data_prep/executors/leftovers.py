"""Jobs that a build's driver left running elsewhere when it was killed are ended before another driver goes on.

The same build would not mind them: whole files appear at once, with the same bytes. But an unfinished build may be
taken over by one with other arguments, whose tasks of the same numbers are other tasks.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.executors import slurm_queue
from data_prep.executors.attempt import open_attempts


def end_leftovers(build_dir: Path) -> None:
    """End the attempts that are open, whichever executor made them; Ray ends the tasks of a lost driver by itself.

    Raises:
        OSError: there are Slurm jobs to end, and Slurm does not answer or is not here.
    """
    attempts = open_attempts(build_dir)
    for attempt in attempts:
        attempt.stop()
    if any((attempt.folder / slurm_queue.SCRIPT_NAME).exists() for attempt in attempts):
        if missing := slurm_queue.missing_command():
            raise OSError(
                f"{build_dir}: jobs of a build that was killed may still run on Slurm, and {missing} is not on the"
                " PATH; go on where jobs can be cancelled"
            )
        slurm_queue.cancel_named(slurm_queue.job_name(build_dir))
    for attempt in attempts:
        attempt.close()
