"""From checkpoints and a frame to probability and nuclei: what evaluate, infer and the video share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.inference.predictor import Predictor
from hela_nuclei.separate import MIN_AREA, Labels, separate

SMALLEST = 32
"""Smaller frames are padded: they would vanish in the networks' poolings."""


@dataclass(frozen=True)
class Prediction:
    """One frame's result: P(nucleus) and, from networks that learned it, the distance map, each (H, W) float32."""

    probability: NDArray[np.float32]
    distance: NDArray[np.float32] | None
    threshold: float
    min_area: int = MIN_AREA
    labels: Labels | None = None
    """The nuclei, where they were separated before."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """P >= threshold."""
        return self.probability >= self.threshold

    def nuclei(self) -> Labels:
        """Separated nuclei, (H, W) int32."""
        if self.labels is not None:
            return self.labels
        return separate(self.mask, self.distance, min_area=self.min_area)


@dataclass(frozen=True)
class NucleiPredictor:
    """The shared predictor on single frames (H, W) in 0...1.

    Attributes:
        predictor: of one or several networks.
        min_area: smaller nuclei are dropped, pixels of the frame.
    """

    predictor: Predictor
    min_area: int = MIN_AREA

    @property
    def threshold(self) -> float:
        """Nucleus iff P >= threshold."""
        return self.predictor.threshold

    def __call__(self, frame: NDArray[np.float32]) -> Prediction:
        """Predict a frame."""
        return self._prediction(self.predictor(padded(frame))[:, : frame.shape[0], : frame.shape[1]])

    def scored(self, frame: NDArray[np.float32]) -> tuple[Prediction, list[NDArray[np.float32]]]:
        """Predict a frame, and each network's own logits (outputs, H, W) behind that."""
        inside = (slice(None), slice(frame.shape[0]), slice(frame.shape[1]))
        maps, logits = self.predictor.scored(padded(frame))
        return self._prediction(maps[inside]), [each[inside] for each in logits]

    def _prediction(self, maps: NDArray[np.float32]) -> Prediction:
        return Prediction(maps[0], maps[1] if len(maps) > 1 else None, self.threshold, self.min_area)


def padded(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """A frame (H, W) as image (1, H, W), mirrored at the bottom and right up to what the networks need at least."""
    missing = [(0, max(0, SMALLEST - size)) for size in frame.shape]
    return np.pad(frame, missing, mode="symmetric")[None]
