"""What the batches of an epoch add up to: kept on the device, and read every few batches.

Reading waits for the device, which would else be given the next batch while it works on the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common import processes
from common.command.cli import NonFiniteLoss
from common.metrics.counts import pair_counts
from common.training.state import TrainState

READ_EVERY = 10
"""Batches between two readings, where reading waits."""


class Running:
    """Loss and hits of an epoch.

    Args:
        state: the training, whose sums are brought up to date by ``read`` and ``end``.
        classes: number of classes.
        device: where the batches are.
    """

    def __init__(self, state: TrainState, classes: int, device: torch.device) -> None:
        self.state = state
        self.hits = torch.tensor(state.hits or [[0] * classes] * classes, device=device)
        self.every = 1 if device.type == "cpu" else READ_EVERY
        self.unread: list[tuple[Tensor, Sequence[object]]] = []

    def add(self, loss: Tensor, names: Sequence[object], found: Tensor, target: Tensor) -> None:
        """Add a batch: its loss, its files, its predicted and its true classes.

        Raises:
            NonFiniteLoss: see ``read``.
        """
        self.unread.append((loss, names))
        self.state.batch += 1
        if len(self.unread) == self.every:
            self.read()
        self.hits += pair_counts(found, target, len(self.hits))

    def read(self) -> None:
        """Bring the sum of the losses up to date.

        Raises:
            NonFiniteLoss: one is NaN or infinite; names the batch's files and its value.
        """
        unread, self.unread = self.unread, []
        values = torch.stack([loss for loss, _ in unread]).tolist() if unread else []
        first = self.state.batch - len(unread) + 1
        for number, (value, (_, names)) in enumerate(zip(values, unread, strict=True), start=first):
            if not math.isfinite(value):
                files = ", ".join(str(name) for share in processes.gathered(list(names)) for name in share)
                raise NonFiniteLoss(
                    f"the loss became {value} in epoch {self.state.epoch + 1}, batch {number}; "
                    f"its files: {files}; lower --lr or look at them"
                )
            self.state.loss_sum += value

    def end(self) -> None:
        """Bring everything up to date; of several processes, all have the hits of all.

        Raises:
            NonFiniteLoss: see ``read``.
        """
        self.read()
        if self.state.batch:
            self.state.hits = processes.add_up(self.hits).tolist()

    @property
    def mean_loss(self) -> float:
        """Of the batches that were read."""
        return self.state.loss_sum / max(self.state.batch - len(self.unread), 1)
