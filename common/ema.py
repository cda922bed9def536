"""Exponential moving average of a network's weights: the average is what gets validated and saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A second copy of ``model`` that follows it slowly.

    The decay of update n (from 1) is min(decay, (1 + n) / (10 + n)), so that short runs are not dominated by the random
    start. Floating-point buffers (BatchNorm statistics) are averaged as well, integer ones copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for mean, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                ours.append(mean)
                theirs.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - decay)
