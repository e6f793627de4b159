"""A share of masked tokens that changes over a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from bert_pld.config.ranges import check_durations, duration_in_steps


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """`data.mask_probability` as an object: the share is `start` for a while and then moves in a line to `end`."""

    start: float = 0.3
    end: float = 0.15
    after: float = 0.0
    """Steps before the share begins to move: a share of `training.max_steps` if below 1, else a number of steps."""
    over: float | None = None
    """Steps in which it moves, in the same units; by default all that are left."""

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        for key in ("start", "end"):
            if not 0.0 < getattr(self, key) < 1.0:
                yield f"{key}: {getattr(self, key)}; must be in (0, 1)"
        yield from check_durations(self, "after", "over")

    def resolved(self, max_steps: int) -> MaskSchedule:
        """Return a copy with numbers of steps for a run of `max_steps` steps."""
        after = duration_in_steps(self.after, max_steps)
        over = max(max_steps - after, 0.0) if self.over is None else duration_in_steps(self.over, max_steps)
        return dataclasses.replace(self, after=after, over=over)

    def at(self, step: int) -> float:
        """Return the share in optimizer step `step`, counted from 0; the schedule must be resolved."""
        assert self.over is not None
        since = step - self.after
        progress = min(max(since / self.over, 0.0), 1.0) if self.over else float(since >= 0)
        return self.start + (self.end - self.start) * progress

    def mean(self, num_steps: int) -> float:
        """Return the mean share over the first `num_steps` optimizer steps, as the area under the line."""
        assert self.over is not None
        before = min(self.after, num_steps)
        moving = min(self.over, num_steps - before)
        reached = self.at(round(before + moving)) if moving else self.end
        after = num_steps - before - moving
        return (before * self.start + moving * (self.start + reached) / 2 + after * self.end) / num_steps
