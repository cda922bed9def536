"""Training windows and validation pictures.

All pictures are read at one scale, the one that makes a picture of median size as large as the network's input, so that
a roof has the same size in pixels wherever it comes from. A training sample is a square window at that scale: the whole
picture where it fits, else a part of it; what lies beyond the edge is mirrored and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from common.data.augmentation import (
    Augmentation,
    Classes,
    Matrix,
    Pixels,
    affine_map,
    cut,
    jitter_colors,
    paste,
    random_turn,
    to_tensor,
)
from common.data.sampling import Key
from common.images.ranges import to_unit
from common.inference.predictor import rescale
from common.labels import IGNORE
from rooftops.data import Pictures


@dataclass(frozen=True)
class PictureAugmentation(Augmentation):
    """How strongly training windows are changed."""

    blur: float = 0.0
    """Share of windows that are blurred."""
    cutmix: float = 0.0
    """Share of windows of which a part is replaced by that part of another one."""


def median_side(sizes: Sequence[tuple[int, int]]) -> float:
    """Median of the pictures' sides, the root of height x width."""
    return float(np.median([(height * width) ** 0.5 for height, width in sizes]))


class Windows:
    """Training samples: square windows with their class maps.

    Args:
        pictures: the data.
        ids: the pictures to draw from.
        side: of the samples, pixels.
        scale: pixels of a sample per pixel of the picture.
        length: samples per epoch; 0 = one per picture.
        augment: None = windows are not changed, and lie in the middle.
    """

    def __init__(
        self,
        pictures: Pictures,
        ids: Sequence[str],
        *,
        side: int,
        scale: float,
        length: int = 0,
        augment: PictureAugmentation | None = None,
    ) -> None:
        self.pictures, self.ids, self.side, self.scale = pictures, list(ids), side, scale
        self.length, self.augment = length or len(ids), augment

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides window and changes."""
        index, seed = key
        rng = np.random.default_rng(seed)
        name = self.ids[index % len(self.ids)]
        image, classes = self._window(name, rng)
        if self.augment and rng.random() < self.augment.cutmix:
            other = self._window(self.ids[rng.integers(len(self.ids))], rng)
            image, classes = paste(image, classes, *other, rng)
        return {
            "image": to_tensor(image),
            "target": torch.from_numpy(classes.astype(np.int64)),
            "id": name,
        }

    def _window(self, name: str, rng: np.random.Generator) -> tuple[Pixels, Classes]:
        """Cut and change a window of a picture: image (side, side, 3) in 0...1, classes (side, side)."""
        picture, augment = self.pictures[name], self.augment
        size, matrix = picture.classes.shape, self._matrix(picture.classes.shape, rng)
        part, classes = cut(
            lambda window: (picture.image[:, *window.slices], picture.classes[window.slices]),
            matrix,
            self.side,
            size=(size[0], size[1]),
            outside=IGNORE,
        )
        image = to_unit(part)
        if augment and augment.color > 0:
            image = jitter_colors(image, augment.color, rng)
        if augment and rng.random() < augment.blur:
            image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.3, 1.5))
        return image, classes

    def _matrix(self, size: tuple[int, ...], rng: np.random.Generator) -> Matrix:
        """The map from a picture's (x, y) to the window's, which lies in the picture, or around a smaller one."""
        augment = self.augment
        if augment is None:
            return affine_map(((size[0] - 1) / 2, (size[1] - 1) / 2), self.side, 0.0, self.scale)
        zoom = self.scale * math.exp(rng.uniform(-augment.zoom, augment.zoom))
        row, col = ((length - 1) / 2 + rng.uniform(-0.5, 0.5) * (length - self.side / zoom) for length in size)
        turn = random_turn(augment.rotate, rng)
        return affine_map((row, col), self.side, turn, zoom, (float(rng.choice([-1.0, 1.0])), 1.0))


class WholePictures:
    """Validation samples: whole pictures at ``scale``, with the truth at the label's own size."""

    def __init__(self, pictures: Pictures, ids: Sequence[str], *, scale: float) -> None:
        self.pictures, self.ids, self.scale = pictures, list(ids), scale

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One picture."""
        picture = self.pictures[self.ids[index]]
        size = [max(1, round(side * self.scale)) for side in picture.classes.shape]
        small = rescale(torch.from_numpy(picture.unit())[None], size)[0]
        return {
            "image": small,
            "target": torch.from_numpy(picture.classes.astype(np.int64)),
            "id": picture.id,
        }
