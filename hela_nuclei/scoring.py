"""Scores of this task: pixels as in every task, and nuclei as the Cell Tracking Challenge counts them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.command.progress import progress
from common.inference.score import Seen
from common.labels import IGNORE
from common.losses import LossRecipe, labeled_mean
from common.metrics.counts import ConfusionMatrix
from common.metrics.split_scores import SplitScores
from common.training.experiment import Batch, Criterion
from hela_nuclei.ctc import CtcScore, drop_border_objects
from hela_nuclei.data import LoadedFrame
from hela_nuclei.predict import NucleiPredictor, Prediction
from hela_nuclei.samples import semantic_target
from hela_nuclei.separate import distance_map
from hela_nuclei.task import TASK


def build_criterion(recipe: LossRecipe) -> Criterion:
    """The training loss: a recipe's on the nucleus logit, plus cross-entropy of a predicted distance map.

    The distance map is a soft target in 0..1, so cross-entropy against it is smallest where the sigmoid equals it.
    """
    pixels = recipe.build()

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        total: Tensor = pixels(logits[:, :1], batch["target"])
        if logits.shape[1] > 1:
            per_pixel = F.binary_cross_entropy_with_logits(logits[:, 1], batch["distance"], reduction="none")
            total = total + labeled_mean(per_pixel, batch["target"] != IGNORE)
        return total

    return criterion


class NucleiScores:
    """Streaming scores over frames: ``update`` each, then ``result``.

    Args:
        threshold: nucleus iff P >= threshold.
        border: width of the band outside the field of interest, pixels.
    """

    def __init__(self, threshold: float, border: int = 25) -> None:
        self.pixels = SplitScores(TASK.classes, threshold=threshold)
        self.interior = ConfusionMatrix(len(TASK.classes))
        self.sequences: dict[str, CtcScore] = {}
        self.image_iou: list[float] = []
        self.border = border

    def update(
        self, sequence: str, name: str, labels: NDArray[np.int32], prediction: Prediction, loss: float = 0.0
    ) -> None:
        """Add a frame: its truth, its prediction and the loss to report."""
        target = torch.from_numpy(semantic_target(labels, 0).astype(np.int64))[None]
        probability = torch.from_numpy(prediction.probability)[None, None]
        mask = torch.from_numpy(prediction.mask.astype(np.int64))[None]
        self.pixels.update(probability, target, loss, [name])
        self.image_iou.append(_iou(mask[0].numpy() > 0, labels > 0))
        inner = (slice(None), *(slice(self.border, max(size - self.border, 0)) for size in labels.shape))
        if mask[inner].numel():
            self.interior.update(mask[inner], target[inner])
        score = self.sequences.setdefault(sequence, CtcScore())
        score.update(drop_border_objects(labels, self.border), drop_border_objects(prediction.nuclei(), self.border))

    def result(self) -> dict[str, Any]:
        """The keys of every task, and ``iou_foi``, ``iou_mean_per_image``, ``seg``, ``det``, ``per_sequence``."""
        overall = CtcScore()
        for score in self.sequences.values():
            overall.merge(score)
        return {
            **self.pixels.result(),
            "iou_foi": self.interior.scores(TASK.classes)["iou"],
            "iou_mean_per_image": float(np.mean(self.image_iou)) if self.image_iou else None,
            "seg": overall.seg(),
            "det": overall.det(),
            "per_sequence": {
                sequence: {"seg": score.seg(), "det": score.det(), "n_frames": score.frames}
                for sequence, score in sorted(self.sequences.items())
            },
        }


def _iou(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of one image; two empty masks agree."""
    union = int((prediction | truth).sum())
    return float((prediction & truth).sum()) / union if union else 1.0


def score_frames(
    predictor: NucleiPredictor,
    loaded: Sequence[LoadedFrame],
    border: int = 25,
    until: float = math.inf,
    seen: Seen | None = None,
) -> NucleiScores:
    """Predict and score frames one by one; the loss is that of the training, of several networks their mean.

    After ``until`` (on the monotonic clock) no further frame is begun, but one is always scored. ``seen`` is told what
    was predicted, with background within ``border`` pixels of the edge ignored.
    """
    scores = NucleiScores(predictor.threshold, border)
    criteria = [build_criterion(recipe) for recipe in (card.loss for card in predictor.predictor.cards)]
    for item in progress(loaded, "scoring", "frame"):
        prediction, logits = predictor.scored(item.unit())
        batch = {
            "target": torch.from_numpy(semantic_target(item.labels, 0).astype(np.int64))[None],
            "distance": torch.from_numpy(distance_map(item.labels))[None],
        }
        pairs = zip(criteria, logits, strict=True)
        losses = [float(criterion(torch.from_numpy(each)[None], batch)) for criterion, each in pairs]
        loss = sum(losses) / len(losses)
        scores.update(item.frame.sequence, item.frame.id, item.labels, prediction, loss)
        if seen is not None:
            seen(item.frame.id, prediction.probability[None], semantic_target(item.labels, border))
        if time.monotonic() >= until:
            break
    scores.pixels.left_out = len(loaded) - len(scores.pixels.ids)
    return scores
