"""Learning rate over a run, as a factor of the peak rate.

Schedules are functions of *progress* (0 at the start, 1 at the end) rather than of a step count, so that a run with a
time budget follows the same curve as a run with a fixed number of epochs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Progress of a run in [0, 1], by optimization steps or by the time budget, whichever is further."""

    total_steps: int
    deadline: float = math.inf
    start: float = field(default_factory=time.monotonic)
    start_progress: float = 0.0

    def progress(self, step: int) -> float:
        """Progress at optimization step ``step`` now."""
        by_steps = step / self.total_steps
        if math.isinf(self.deadline):
            return by_steps
        share = (time.monotonic() - self.start) / max(self.deadline - self.start, 1e-3)
        return min(1.0, max(by_steps, self.start_progress + (1 - self.start_progress) * share))

    def left(self, step: int) -> float | None:
        """Seconds to the end of the run at the pace so far; None = nothing is known yet."""
        progress, seconds = self.progress(step), time.monotonic() - self.start
        gained = progress - self.start_progress
        return seconds * (1 - progress) / gained if gained > 0 and seconds > 0 else None

    @property
    def expired(self) -> bool:
        """Whether the budget for optimization steps is used up."""
        return time.monotonic() >= self.deadline


@dataclass
class Schedule:
    """Learning-rate factor per optimization step; ``plateau`` also keeps state, fed with each epoch's validation loss.

    Args:
        name: constant, plateau, step, poly (power 0.9) or cosine.
        epochs: planned epochs; ``step`` counts its period in them.
        warmup_steps: steps of linear rise; the peak follows them.
        factor: of one fall (plateau, step).
        period: epochs between two falls (step).
        patience: epochs without a better loss before a fall (plateau).
        minimum: lower bound of the factor.
    """

    name: str
    epochs: int
    warmup_steps: int = 0
    factor: float = 0.5
    period: int = 30
    patience: int = 5
    minimum: float = 0.0
    best_loss: float = math.inf
    bad_epochs: int = 0
    falls: int = 0

    def value(self, step: int, progress: float) -> float:
        """Factor for optimization step ``step`` (from 0) at ``progress`` in [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        shape: float = {
            "constant": 1.0,
            "plateau": self.factor**self.falls,
            "step": self.factor ** int(progress * self.epochs / self.period + 1e-9),
            "poly": (1 - progress) ** 0.9,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.name]
        return max(shape, self.minimum) * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def end_epoch(self, val_loss: float) -> None:
        """Note an epoch's validation loss: after more than ``patience`` epochs without a better one, plateau falls."""
        if val_loss < self.best_loss * (1 - 1e-4):
            self.best_loss, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.name == "plateau" and self.bad_epochs > self.patience:
            self.falls, self.bad_epochs = self.falls + 1, 0

    def state(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"best_loss": self.best_loss, "bad_epochs": self.bad_epochs, "falls": self.falls}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.best_loss, self.bad_epochs, self.falls = state["best_loss"], state["bad_epochs"], state["falls"]
