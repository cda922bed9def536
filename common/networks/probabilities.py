"""From logits to probabilities."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from common.networks.checkpoint import ModelCard

Probabilities = Callable[[Tensor], Tensor]


def foreground_probability(logits: Tensor) -> Tensor:
    """Logits of two classes, one channel or one for each -> (N, 1, H, W) P(foreground)."""
    one = logits.contiguous() if logits.shape[1] == 1 else logits[:, 1:2] - logits[:, :1]
    return one.sigmoid()  # of every n-th number in memory it would take four times as long


def class_probabilities(logits: Tensor) -> Tensor:
    """(N, C, H, W) logits -> probabilities of the same shape: the softmax over the channels."""
    return logits.softmax(1)


def probabilities_of(card: ModelCard) -> Probabilities:
    """What turns the outputs of a network into probabilities: P(foreground) of two classes, else the softmax."""
    if len(card.classes) > 2:
        return class_probabilities
    return lambda outputs: foreground_probability(outputs[:, : outputs.shape[1] - len(card.maps)])
