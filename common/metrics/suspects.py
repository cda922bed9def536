"""Suspected label errors: where a network is sure of another class than the label over more than an edge's width."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from common.labels import IGNORE

SURE = 0.8
"""Least probability of the other class."""
EDGE = 7
"""Disagreement narrower than this many pixels is a matter of drawing, not an error."""
LEAST_SHARE = 0.01
"""Of an image's labeled pixels, for the image to be suspected."""


@dataclass(frozen=True)
class Suspicion:
    """What speaks against an image's label."""

    share: float
    """Of the labeled pixels that are disputed."""
    pixels: int
    """Their number."""
    label: int
    """The class that most of them are labeled as."""
    prediction: int
    """The class that most of those are predicted as."""
    box: tuple[int, int, int, int]
    """First row, first column, height and width of the largest disputed patch."""


def suspect(probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> Suspicion | None:
    """Find what a network confidently contradicts in one label.

    Args:
        probability: (1, H, W) of the foreground, or (K, H, W).
        truth: (H, W) class indices, 255 = ignored.

    Returns:
        The suspicion, or None where at most ``LEAST_SHARE`` of the labeled pixels is disputed.
    """
    classes = np.concatenate([1 - probability, probability]) if len(probability) == 1 else probability
    guess, valid = classes.argmax(0), truth != IGNORE
    disputed = (valid & (guess != truth) & (classes.max(0) >= SURE)).astype(np.uint8)
    disputed = np.asarray(cv2.morphologyEx(disputed, cv2.MORPH_OPEN, np.ones((EDGE, EDGE), np.uint8)), np.uint8)
    pixels = int(np.count_nonzero(disputed))
    if not pixels or pixels <= LEAST_SHARE * np.count_nonzero(valid):
        return None
    where = disputed > 0
    label = int(np.bincount(truth[where]).argmax())
    _, _, patches, _ = cv2.connectedComponentsWithStats(disputed)
    left, top, width, height, _ = (int(v) for v in max(patches[1:], key=lambda patch: patch[cv2.CC_STAT_AREA]))
    prediction = int(np.bincount(guess[where & (truth == label)]).argmax())
    return Suspicion(pixels / int(np.count_nonzero(valid)), pixels, label, prediction, (top, left, height, width))
