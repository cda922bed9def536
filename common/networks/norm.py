"""BatchNorm in training: where a batch has a single value per channel, and where several processes share a batch."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import processes


class SteadyBatchNorm(nn.BatchNorm2d):
    """BatchNorm that also takes one value per channel, such as the deepest map of a small crop in a batch of one.

    The variance of one value says nothing (PyTorch refuses it): the running statistics are used instead, and kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose mean and variance in training are those of the batch that all processes share.

    ``torch.nn.SyncBatchNorm`` does the same on a GPU, and refuses the CPU.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        # Moments about the running mean, which all processes have: near the mean no digits cancel.
        offset = mean - self.running_mean
        own = torch.cat([offset, variance + offset.square(), torch.ones_like(offset[:1])])
        sums = processes.total(count * own)
        pixels = sums[-1].detach()
        offset, square = (sums[:-1] / pixels).chunk(2)
        mean, variance = self.running_mean + offset, (square - offset.square()).clamp_min(0)
        self._follow(mean.detach(), variance.detach() * pixels / (pixels - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's."""
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def steady_batch_norm(model: nn.Module) -> nn.Module:
    """Let every BatchNorm of a network take a batch of one, in place; its tensors and their names stay."""
    return _norms_of_kind(model, SteadyBatchNorm)


def shared_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm of a network see the batch of all processes, in place; its tensors and their names stay."""
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    return _norms_of_kind(model, SharedBatchNorm)


def _norms_of_kind(model: nn.Module, kind: type[nn.BatchNorm2d]) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = kind
    return model
