"""From logits to probabilities."""

from __future__ import annotations

from torch import Tensor


def binary_probability(logits: Tensor) -> Tensor:
    """(N, C, H, W) logits -> (N, 1, H, W) P(foreground): the sigmoid of the first channel."""
    return logits[:, :1].sigmoid()


def foreground_probability(logits: Tensor) -> Tensor:
    """Logits of two classes, one channel or one for each -> (N, 1, H, W) P(foreground)."""
    return binary_probability(logits if logits.shape[1] == 1 else logits[:, 1:2] - logits[:, :1])


def class_probabilities(logits: Tensor) -> Tensor:
    """(N, C, H, W) logits -> probabilities of the same shape: the softmax over the channels."""
    return logits.softmax(1)
