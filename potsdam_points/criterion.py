"""What training minimizes: a loss at the labeled points, and if asked for, terms that use the unlabeled pixels.

- ``pseudo``: a teacher, the moving average of the network itself, sees the crop without color changes; where it is
  sure, its answer is the target of the student, which sees the changed crop (mean teacher, Tarvainen and Valpola 2017,
  with the confidence threshold of FixMatch, Sohn et al. 2020).
- ``affinity``: neighboring pixels of like color should get like classes (the gated CRF loss, Obukhov et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.labels import IGNORE
from common.losses import SegmentationLoss
from common.networks.precision import Precision
from common.training.experiment import Batch
from common.training.state import TrainState

NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))
COLOR_WIDTH = 0.35
"""Color difference, in units of the normalized image, at which affinity has fallen to exp(-1/2)."""


def at_points(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the labeled pixels: (N, C, H, W) and (N, H, W) -> (1, C, 1, n) and (1, 1, n); n may be 0.

    Every loss over them costs what the points cost, not what the image costs.
    """
    labeled = target != IGNORE
    return logits.movedim(1, -1)[labeled].T[None, :, None, :], target[labeled][None, None, :]


def pseudo_labels(probability: Tensor, confidence: float) -> Tensor:
    """Teacher's probabilities (N, C, H, W) -> its class where it is sure, else 255, (N, H, W) int64."""
    best, label = probability.max(dim=1)
    return label.masked_fill(best < confidence, IGNORE)


def affinity(logits: Tensor, image: Tensor, distance: int = 2) -> Tensor:
    """Mean over neighboring pixels of (likeness of color) x (probability that their classes differ).

    Args:
        logits: (N, C, H, W).
        image: normalized image, (N, 3, H, W).
        distance: pixels between neighbors.
    """
    probability = logits.float().softmax(1)
    total = probability.new_zeros(())
    for rows, columns in NEIGHBORS:
        first, second = _shifted(probability, rows * distance, columns * distance)
        a, b = _shifted(image, rows * distance, columns * distance)
        likeness = torch.exp(-(a - b).square().mean(1) / (2 * COLOR_WIDTH**2))
        total = total + (likeness * (1 - (first * second).sum(1))).mean()
    return total / len(NEIGHBORS)


def _shifted(maps: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Two views of (N, C, H, W): pixels and their neighbors at (rows, columns)."""
    height, width = maps.shape[2:]
    left, right = max(0, -columns), max(0, columns)
    first = maps[:, :, : height - rows, left : width - right]
    second = maps[:, :, rows:, left + columns : width - right + columns]
    return first, second


@dataclass
class PointCriterion:
    """Training loss of logits and a batch.

    Args:
        points: loss at the labeled points.
        precision: in which the teacher runs.
        pseudo: weight of the pseudo-label term.
        confidence: probability from which on the teacher is believed.
        affinity: weight of the color-affinity term.
        ramp: share of the training over which both weights rise from 0.
    """

    points: SegmentationLoss
    precision: Precision
    pseudo: float = 0.0
    confidence: float = 0.8
    affinity: float = 0.0
    ramp: float = 0.3

    def __call__(self, logits: Tensor, batch: Batch, state: TrainState | None) -> Tensor:
        """The loss; unlabeled pixels count only in training, where the state holds the teacher and the progress."""
        loss: Tensor = self.points(*at_points(logits, batch["target"]))
        if state is None:
            return loss
        rise = min(1.0, state.progress / self.ramp) if self.ramp > 0 else 1.0
        step = logits.shape[-1] // batch["image"].shape[-1]
        small = logits[..., ::step, ::step]  # at the network's own resolution nothing is lost and it costs a quarter
        if self.pseudo > 0:
            loss = loss + self.pseudo * rise * self._pseudo(small, batch, step, state.inference_model)
        if self.affinity > 0:
            loss = loss + self.affinity * rise * affinity(small, batch["weak"] if "weak" in batch else batch["image"])
        return loss

    @torch.no_grad()
    def _teach(self, batch: Batch, step: int, teacher: nn.Module) -> Tensor:
        training = teacher.training
        teacher.eval()
        with self.precision.autocast():
            logits = teacher(batch["weak"])
        teacher.train(training)
        return pseudo_labels(logits[..., ::step, ::step].float().softmax(1), self.confidence)

    def _pseudo(self, logits: Tensor, batch: Batch, step: int, teacher: nn.Module) -> Tensor:
        target = self._teach(batch, step, teacher)
        target = target.masked_fill(batch["target"][..., ::step, ::step] != IGNORE, IGNORE)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return loss / target.numel()
