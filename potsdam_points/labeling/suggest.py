"""Which points to click next: where an answer is worth most, spread over the picture.

The most uncertain pixels alone are edges and noise, where nobody can tell either and neighbors say the same. So
uncertainty is averaged over a patch, and points are kept apart, in the picture and in what the network says of them.
Of the ways to value a pixel this one needed the fewest clicks on both kinds of pictures that were measured
(`experiments.py --active`, results in the README); those that favor rare classes did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Strategy = Literal["random", "margin", "patch", "balanced"]

PATCH = 36
"""Side of the patch over which uncertainty is averaged, pixels."""
APART = 0.5
"""How much a point like one that is known is worth less, at most."""


def uncertainty(probabilities: Floats) -> Floats:
    """(K, H, W) -> (H, W) in 0...1: how close the second class comes to the first (1 = a tie)."""
    if len(probabilities) == 1:
        return np.zeros(probabilities.shape[1:])
    ordered = np.partition(probabilities, -2, axis=0)
    return np.asarray(1 - (ordered[-1] - ordered[-2]), np.float64)


def values(probabilities: Floats, counts: Sequence[int], strategy: Strategy = "patch", patch: int = PATCH) -> Floats:
    """What a click on each pixel is worth, (H, W).

    Args:
        probabilities: (K, H, W) of the present network.
        counts: points that each class has so far.
        strategy: ``random``: all the same; ``margin``: the uncertainty of the pixel; ``patch``: its mean over the
            surroundings; ``balanced``: that, weighted by how rare the classes are among the points.
        patch: side of those surroundings, cells.
    """
    if strategy == "random":
        return np.ones(probabilities.shape[1:])
    single = uncertainty(probabilities)
    if strategy == "margin":
        return single
    around = np.asarray(ndimage.uniform_filter(single, patch, mode="nearest"))
    if strategy == "patch":
        return around
    known = np.asarray(counts, np.float64) + 1
    rarity = np.sqrt(known.mean() / known)
    expected = np.tensordot(rarity / rarity.max(), probabilities, axes=1)
    return np.asarray((0.1 + around) * expected)


def choose(
    worth: Floats,
    features: Floats,
    known: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
    spacing: float,
) -> NDArray[np.int64]:
    """Points one after the other: the most valuable of a random draw, each keeping the next ones at a distance.

    Args:
        worth: (H, W) from `values`; 0 = not to be chosen.
        features: (D, H, W) what the network says of each pixel: its probabilities.
        known: (n, 2) rows and columns of points that are there already.
        count: how many.
        generator: of the draw.
        spacing: pixels; within this distance of a point another one is worth next to nothing.

    Returns:
        (m, 2) rows and columns, m <= count.
    """
    flat = worth.ravel()
    able = np.flatnonzero(flat > 0)
    if not len(able):
        return np.zeros((0, 2), np.int64)
    candidates = generator.choice(able, min(len(able), 4000), replace=False)
    rows, columns = np.divmod(candidates, worth.shape[1])
    place = np.stack([rows, columns], axis=1).astype(np.float64)
    look = features.reshape(len(features), -1)[:, candidates].T
    score = flat[candidates].copy()
    for row, column in known:
        score *= 1 - np.exp(-((place - (row, column)) ** 2).sum(axis=1) / (2 * spacing**2))
    chosen: list[int] = []
    while len(chosen) < count and score.max(initial=0) > 0:
        best = int(score.argmax())
        chosen.append(best)
        score *= 1 - np.exp(-((place - place[best]) ** 2).sum(axis=1) / (2 * spacing**2))
        score *= 1 - APART * np.exp(-((look - look[best]) ** 2).sum(axis=1) / 0.1)
        score[best] = 0
    return np.stack([rows[chosen], columns[chosen]], axis=1).astype(np.int64)
