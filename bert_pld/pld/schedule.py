"""The PLD schedule: keep probabilities over steps and depth, and the compute they save, as functions of the step.

Zhang and He, "Accelerating Training of Transformer-Based Language Models with Progressive Layer Dropping",
arXiv:2010.13369, section 4.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """θ(t) over optimizer steps and p_l(t) over the blocks l = 1 … L.

    With the defaults:

        θ(t)   = (1 − θ̄)·exp(−γ·t) + θ̄            (θ(0) = 1: nothing dropped; θ → θ̄)
        p_l(t) = 1 − (l / L)·(1 − θ(t))
    """

    num_blocks: int
    theta_limit: float = 0.5
    gamma: float = 0.001
    temporal: Literal["exponential", "constant"] = "exponential"
    depth: Literal["linear", "uniform"] = "linear"
    keep_first_block: bool = False

    def theta(self, step: int) -> float:
        """θ(t) at optimizer step t, counted from 0."""
        if self.temporal == "constant":
            return self.theta_limit
        return (1.0 - self.theta_limit) * math.exp(-self.gamma * step) + self.theta_limit

    def keep_probabilities(self, step: int) -> tuple[float, ...]:
        """p_l(t) for l = 1 … L.

        With `depth: uniform` p_l is θ(t) for every block. `keep_first_block` counts the depth from 0, so that block 1
        is never dropped: p_l = 1 − ((l − 1) / L)·(1 − θ(t)).
        """
        drop = 1.0 - self.theta(step)
        first = 0 if self.keep_first_block else 1
        if self.depth == "linear":
            return tuple(1.0 - (index + first) / self.num_blocks * drop for index in range(self.num_blocks))
        return tuple(1.0 if index < 1 - first else 1.0 - drop for index in range(self.num_blocks))

    def expected_depth(self, step: int) -> float:
        """Σ p_l(t): the expected number of blocks that run; (3L − 1)/4 at θ = 0.5 with the defaults."""
        return math.fsum(self.keep_probabilities(step))

    def mean_expected_depth(self, num_steps: int) -> float:
        """The expected depth averaged over optimizer steps 0 … num_steps − 1.

        The depth is linear in θ, and Σ θ(t) is a geometric series, so the mean has an exact closed form.
        """
        if self.temporal == "constant" or self.gamma == 0.0:
            return self.expected_depth(0)
        mean_decay = -math.expm1(-self.gamma * num_steps) / (-math.expm1(-self.gamma) * num_steps)
        full = float(self.num_blocks)
        limit = dataclasses.replace(self, temporal="constant").expected_depth(0)
        return limit + (full - limit) * mean_decay

    def steps_until_theta_within(self, share: float) -> int | None:
        """Return the first step from which θ is within a relative distance `share` of its limit; None: never."""
        excess = 1.0 - self.theta_limit
        if self.temporal == "constant" or excess <= share * self.theta_limit:
            return 0
        if self.gamma == 0.0:
            return None
        return math.ceil(math.log(excess / (share * self.theta_limit)) / self.gamma)
