"""BatchNorm in training, where a batch has a single value per channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SteadyBatchNorm(nn.BatchNorm2d):
    """BatchNorm that also takes one value per channel, such as the deepest map of a small crop in a batch of one.

    The variance of one value says nothing (PyTorch refuses it): the running statistics are used instead, and kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def steady_batch_norm(model: nn.Module) -> nn.Module:
    """Let every BatchNorm of a network take a batch of one, in place; its tensors and their names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SteadyBatchNorm
    return model
