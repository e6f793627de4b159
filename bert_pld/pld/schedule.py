"""The schedule of dropping: keep probabilities over steps and depth, as functions of the step alone.

Zhang and He, "Accelerating Training of Transformer-Based Language Models with Progressive Layer Dropping",
arXiv:2010.13369, section 4. The dense warm-up, the dense finish and the other ramps are additions; with their defaults
the schedule is the paper's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 1_000_000
"""Steps over which a mean is computed exactly, in about a second."""


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
    temporal: Literal["exponential", "linear", "growing", "constant"] = "exponential"
    depth: Literal["linear", "uniform"] = "linear"
    keep_first_block: bool = False
    keep_last_block: bool = False
    keep_every: int = 0
    """Blocks 1, 1 + n, 1 + 2n and so on are never dropped; 0: they are, too."""
    warmup_steps: int = 0
    """Steps of the dense warm-up, in which every block runs on everything; t counts from its end."""
    ramp_steps: int = 0
    """Steps over which θ changes between 1 and θ̄ if `temporal` is `linear` or `growing`."""
    finish_step: int | None = None
    """The first step of the dense finish, from which on every block runs on everything; None: no dense finish."""

    @property
    def limit(self) -> Schedule:
        """The schedule whose θ is θ̄ at every step."""
        return dataclasses.replace(self, temporal="constant", warmup_steps=0, finish_step=None)

    def is_dense(self, step: int) -> bool:
        """Whether optimizer step `step` is in the dense warm-up or in the dense finish."""
        return step < self.warmup_steps or (self.finish_step is not None and step >= self.finish_step)

    def theta(self, step: int) -> float:
        """θ(t) at optimizer step t, counted from 0."""
        if self.is_dense(step):
            return 1.0
        since = step - self.warmup_steps
        if self.temporal == "exponential":
            return (1.0 - self.theta_limit) * math.exp(-self.gamma * since) + self.theta_limit
        ramp = min(since / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        if self.temporal == "linear":
            return 1.0 - (1.0 - self.theta_limit) * ramp
        if self.temporal == "growing":
            return self.theta_limit + (1.0 - self.theta_limit) * ramp
        return self.theta_limit

    def thetas(self, num_steps: int) -> NDArray[np.float64]:
        """θ of the steps 0 … num_steps − 1; beyond a million steps, of evenly spaced ones."""
        steps = range(0, num_steps, -(-num_steps // _MOST_STEPS))
        return np.fromiter(map(self.theta, steps), np.float64, len(steps))

    @property
    def drop_weights(self) -> tuple[float, ...]:
        """w_l in p_l(t) = 1 − w_l·(1 − θ(t)): l / L, or 1 with `depth: uniform`; 0 for a block that is never dropped.

        `keep_first_block` with `depth: linear` counts the depth from 0, as the published code did: w_l = (l − 1) / L.
        """
        first = 0 if self.keep_first_block else 1
        weights = [(index + first) / self.num_blocks for index in range(self.num_blocks)]
        if self.depth == "uniform":
            weights = [1.0 if index >= 1 - first else 0.0 for index in range(self.num_blocks)]
        if self.keep_last_block:
            weights[-1] = 0.0
        if self.keep_every:
            weights = [0.0 if index % self.keep_every == 0 else weight for index, weight in enumerate(weights)]
        return tuple(weights)

    def keep_probabilities(self, step: int) -> tuple[float, ...]:
        """p_l(t) for l = 1 … L; at token granularity the share of the tokens that block l runs on."""
        drop = 1.0 - self.theta(step)
        return tuple(1.0 - weight * drop for weight in self.drop_weights)

    def expected_depth(self, step: int) -> float:
        """Σ p_l(t): the expected number of blocks that run; (3L − 1)/4 at θ = 0.5 with the defaults."""
        return math.fsum(self.keep_probabilities(step))

    def steps_until_theta_within(self, share: float) -> int | None:
        """Return the first step from which θ is within a relative distance `share` of its limit; None: never.

        The dense finish is left out. A θ that grows starts at its limit and leaves it.
        """
        excess, allowed = 1.0 - self.theta_limit, share * self.theta_limit
        if excess <= allowed:
            return 0
        if self.temporal == "growing":
            return None
        if self.temporal == "exponential":
            if self.gamma == 0.0:
                return None
            since = math.ceil(math.log(excess / allowed) / self.gamma)
        elif self.temporal == "linear":
            since = math.ceil(self.ramp_steps * (1.0 - allowed / excess))
        else:
            since = 0
        step = self.warmup_steps + since
        return None if self.finish_step is not None and step >= self.finish_step else step
