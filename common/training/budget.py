"""What ``--max-minutes`` leaves: when optimization, validation and the final scores must end to be out in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common import processes
from common.command.cli import STARTED
from common.command.config import TrainConfig
from common.command.progress import duration

FINISH_SECONDS = 12.0
"""For curves, pictures and the report."""
GRACE = 45.0
"""A run may end so much later than asked for."""
SLOWER = 1.5
"""The final scores take so much longer than a validation of as many images; a validation may take so much longer than
the last one."""


def end_of(config: TrainConfig) -> float:
    """When the command is asked to end, on the monotonic clock; never without a budget."""
    return STARTED + 60 * config.max_minutes if config.max_minutes else math.inf


@dataclass
class Budget:
    """The time until ``ends``, shared out between optimization, validation and the end of the run.

    Args:
        ends: when the command should end.
        scored: images of the part that the final scores are of.
        image_seconds: for predicting and judging one image in one process.
        finish_seconds: kept for final scores, pictures and report; at most half of what is left.
    """

    ends: float
    scored: int
    image_seconds: float = 0.0
    finish_seconds: float = FINISH_SECONDS

    def measure(self, image_seconds: float, now: float) -> None:
        """Plan with what an image has taken."""
        self.image_seconds = image_seconds
        wanted = FINISH_SECONDS + image_seconds * SLOWER * self.scored
        self.finish_seconds = min(wanted, max(FINISH_SECONDS, (self.ends - now) / 2))

    def require(self, step_seconds: float, now: float) -> None:
        """Make sure that one optimization step, its validation and a minimal end of the run fit, with some grace.

        Raises:
            ValueError: they do not.
        """
        need = step_seconds + self.image_seconds * 2 * SLOWER + FINISH_SECONDS
        if need > max(self.ends - now, 0.0) + GRACE:
            raise ValueError(
                f"--max-minutes has no room for anything: on this device one optimization step takes about "
                f"{duration(step_seconds)} and an image {duration(self.image_seconds)}; give more minutes, or a "
                "smaller network or --batch-size (--recipe best is made for small devices)"
            )

    @property
    def validation_end(self) -> float:
        """When the last validation must end."""
        return self.ends - self.finish_seconds

    def optimization_end(self, images: int) -> float:
        """When optimization must end for a validation of so many images, shared by all processes, to fit."""
        return self.validation_end - SLOWER * self.image_seconds * math.ceil(images / processes.count())

    def watched(self, images: int, seed: int, now: float) -> Sequence[int]:
        """Which of so many validation images every epoch is judged by: as many as fit into a third of the time.

        With a budget they are in random order, so that a validation cut short has seen images from everywhere.
        """
        if math.isinf(self.ends):
            return range(images)
        room = max(self.validation_end - now, 0.0) / 3
        fitting = processes.count() * int(room / max(SLOWER * self.image_seconds, 1e-9))
        order: list[int] = np.random.default_rng(seed).permutation(images).tolist()
        return order[: max(1, min(images, fitting))]
