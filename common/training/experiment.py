"""What the training loop works on: samples, an experiment of network and data, and how its batches are computed.

A training dataset is indexed by ``sampling.Key`` and draws at random from the key's seed alone, a validation dataset by
plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common.command.cli import StopRequest
from common.networks.checkpoint import ModelCard
from common.networks.normalize import normalize
from common.networks.precision import Precision
from common.networks.probabilities import Probabilities, probabilities_of
from common.samples import Sample, SegmentationData

Batch = Sample
"""Samples that were put together: their tensors (N, ...), their names in lists."""
Criterion = Callable[[Tensor, Batch], Tensor]
"""Logits and their batch -> scalar loss."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors to the device; four-dimensional ones in channels-last order, which convolutions prefer."""

    def move(value: Tensor) -> Tensor:
        if value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=torch.channels_last)
        return value.to(device, non_blocking=True)

    return {name: move(value) if isinstance(value, Tensor) else value for name, value in batch.items()}


@dataclass(frozen=True)
class Experiment:
    """What is trained, and on what."""

    model: nn.Module
    card: ModelCard
    """The network's card; threshold, scores and configuration are filled in by the training."""
    train_data: SegmentationData
    """Indexed by ``sampling.Key``."""
    val_data: SegmentationData
    """Indexed by integers."""
    test_images: int = 0
    """Number of test samples, for whose evaluation ``--max-minutes`` keeps time."""
    criterion: Criterion | None = None
    """None = the card's loss against ``target``."""
    annotate: Callable[[Path], None] | None = None
    """Writes what the training was given, such as drawn points, into the run's folder before the first step."""


@dataclass(frozen=True)
class Engine:
    """How batches are computed and judged."""

    criterion: Criterion
    probabilities: Probabilities
    precision: Precision
    stop: StopRequest | None = None
    normalization: Mapping[str, object] = field(default_factory=dict)
    """The card's."""
    class_count: int = 2
    """The card's too."""

    @classmethod
    def of(cls, experiment: Experiment, precision: Precision, stop: StopRequest | None = None) -> Engine:
        """That of an experiment: its own criterion, or the loss that its card names."""
        loss = experiment.card.loss.build()
        criterion = experiment.criterion or (lambda logits, batch: loss(logits, batch["target"]))
        card = experiment.card
        return cls(criterion, probabilities_of(card), precision, stop, card.normalization, len(card.classes))

    @property
    def interrupted(self) -> bool:
        """Whether a signal asked to stop."""
        return self.stop is not None and self.stop.signum is not None

    def receive(self, batch: Batch) -> Batch:
        """A batch on the device, its images normalized."""
        moved = to_device(batch, self.precision.device)
        return {**moved, "image": normalize(moved["image"], self.normalization)}

    def classes(self, logits: Tensor, threshold: float) -> Tensor:
        """Class indices (N, H, W) of logits; of two classes the foreground where its P is at least the threshold."""
        probability = self.probabilities(logits)
        return (probability[:, 0] >= threshold).long() if probability.shape[1] == 1 else probability.argmax(1)

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        """The network's outputs for a batch that was received."""
        with self.precision.autocast():
            logits: Tensor = network(batch["image"])
        return logits.float()
