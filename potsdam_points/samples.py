"""Training crops and validation images.

A crop is read at ``1 / shrink`` of its size. Points are moved by its map instead of being resampled: no click is lost
or doubled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from common.data.augmentation import (
    Augmentation,
    Matrix,
    Pixels,
    Place,
    affine_map,
    middle,
    near,
    random_turn,
    to_tensor,
    warp,
)
from common.data.labeled import LabeledImage
from common.data.sampling import Key
from common.images.ranges import to_unit
from common.labels import IGNORE

NORMALIZATION = {"mean": [0.45, 0.45, 0.43], "std": [0.22, 0.20, 0.20]}
"""Of aerial photographs in 0...1; what a network was trained with is in its checkpoint."""


@dataclass(frozen=True)
class CropPlan:
    """Which crops are drawn."""

    crop: int
    """Side of the crops in pixels of the image; a multiple of ``shrink``."""
    shrink: int
    """The network reads images at 1 / shrink."""
    length: int = 0
    """Samples per epoch; 0 = one per image."""
    most_points: int = 0
    """Use at most so many of an image's points in one crop, drawn anew each time (0 = all): where they lie dense,
    neighbors say the same, and the loss costs what its points cost."""
    balance: float = 0.0
    """Share of samples that are centered on a point of a class drawn evenly, instead of anywhere."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if self.crop % self.shrink:
            raise ValueError(f"--crop-size {self.crop} must be a multiple of {self.shrink}, at which images are shrunk")


class PointCrops:
    """Training samples: crops with their points.

    Args:
        patches: images and their (sparse) classes.
        plan: which crops are drawn.
        augment: off (None) = upright crops without changes.
    """

    def __init__(self, patches: Sequence[LabeledImage], plan: CropPlan, *, augment: Augmentation | None = None) -> None:
        self.patches, self.length, self.augment = patches, plan.length or len(patches), augment
        self.crop, self.shrink = plan.crop, plan.shrink
        self.most_points, self.balance = plan.most_points, plan.balance
        self.images: list[NDArray[Any]] = [np.ascontiguousarray(np.moveaxis(patch.image, 0, -1)) for patch in patches]
        self.points = [np.argwhere(patch.classes != IGNORE) for patch in patches]
        self.by_class = _images_by_class(patches)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides crop and augmentation."""
        index, seed = key
        rng = np.random.default_rng(seed)
        number, center = self._place(index % len(self.patches), rng)
        patch = self.patches[number]
        matrix = self._matrix(center, rng)
        image = to_unit(warp(self.images[number], matrix, self.crop))
        if self.shrink > 1:
            side = self.crop // self.shrink
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        sample = {"target": torch.from_numpy(self._target(number, matrix, rng)), "id": patch.id}
        if self.augment is not None and self.augment.color > 0:
            image = change_colors(image, self.augment.color, rng)
        return {"image": to_tensor(image), **sample}

    def _place(self, index: int, rng: np.random.Generator) -> tuple[int, Place]:
        """An image and the crop's center (row, column) in it."""
        if rng.random() < self.balance and self.by_class:
            label = int(rng.choice(list(self.by_class)))
            numbers, shares = self.by_class[label]
            index = int(rng.choice(numbers, p=shares))
            points = self.points[index]
            own = points[self.patches[index].classes[points[:, 0], points[:, 1]] == label]
            return index, near(own[rng.integers(len(own))], self.crop, rng)
        height, width = self.patches[index].classes.shape
        return index, (middle(height, self.crop, rng), middle(width, self.crop, rng))

    def _matrix(self, center: Place, rng: np.random.Generator) -> Matrix:
        """The map from the image's (x, y) to the crop's."""
        if self.augment is None:
            return affine_map(center, self.crop, 0.0, 1.0)
        turn = random_turn(self.augment.rotate, rng)
        flip = 1.0 if rng.random() < 0.5 else -1.0
        return affine_map(
            center, self.crop, turn, math.exp(rng.uniform(-self.augment.zoom, self.augment.zoom)), (flip, 1)
        )

    def _target(self, number: int, matrix: Matrix, rng: np.random.Generator) -> NDArray[np.int64]:
        """The image's points inside the crop, on (crop, crop)."""
        points = self.points[number]
        if 0 < self.most_points < len(points):
            points = points[rng.integers(len(points), size=self.most_points)]
        moved = np.rint(points[:, ::-1] @ matrix[:, :2].T + matrix[:, 2]).astype(np.int64)
        inside = ((moved >= 0) & (moved < self.crop)).all(axis=1)
        target = np.full((self.crop, self.crop), IGNORE, np.int64)
        rows, columns = points[inside].T
        target[moved[inside, 1], moved[inside, 0]] = self.patches[number].classes[rows, columns]
        return target


def _images_by_class(patches: Sequence[LabeledImage]) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each labeled class the images that show it, with the chance of each: the root of its points."""
    table = {}
    for label in np.unique(np.concatenate([np.unique(patch.classes) for patch in patches])).tolist():
        if label == IGNORE:
            continue
        counts = np.array([int((patch.classes == label).sum()) for patch in patches])
        numbers = np.flatnonzero(counts)
        if len(numbers):
            roots = np.sqrt(counts[numbers])
            table[label] = (numbers, roots / roots.sum())
    return table


def change_colors(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation, hue (channel gains) and noise of an image (H, W, 3) in 0...1."""
    grey = image.mean(axis=2, keepdims=True)
    saturation = np.exp(rng.normal(0, 0.5 * strength)) if rng.random() > 0.1 * strength else 0.0
    image = grey + (image - grey) * np.float32(saturation)
    gains = np.exp(rng.normal(0, 0.12 * strength, 3) + rng.normal(0, 0.25 * strength))
    contrast = np.exp(rng.normal(0, 0.3 * strength))
    level = image.mean()
    image = (
        (image - level) * (contrast * gains).astype(np.float32) + level * gains.mean() + rng.normal(0, 0.05 * strength)
    )
    if rng.random() < 0.3 * strength:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.3, 1.2))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.04 * strength))
    return np.clip(image.astype(np.float32) + noise, 0, 1)


class WholePatches:
    """Validation samples: whole images at 1 / ``shrink``, truth at full size; what pads odd sides is ignored."""

    def __init__(self, patches: Sequence[LabeledImage], *, shrink: int) -> None:
        self.patches, self.shrink = patches, shrink

    def __len__(self) -> int:
        """Number of images."""
        return len(self.patches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image."""
        patch = self.patches[index]
        missing = [(0, -size % self.shrink) for size in patch.classes.shape]
        image = np.pad(patch.unit(), ((0, 0), *missing), mode="edge")
        target = np.pad(patch.classes, missing, constant_values=IGNORE)
        small = F.avg_pool2d(torch.from_numpy(image), self.shrink)
        return {
            "image": small,
            "target": torch.from_numpy(target.astype(np.int64)),
            "id": patch.id,
        }
