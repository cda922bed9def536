"""Training crops and validation tiles.

A crop is cut by one affine map (scale, turn, flip) out of the part of a scene that it needs, so a raster on disk costs
no more than a chip in memory. Image and classes are mirrored beyond the scene's edge. Color changes are one affine map
too, of the three bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augmentation import blur_and_noise, color_map
from common.data.sampling import Key
from common.images.ranges import to_unit
from footprints.data import SceneSet, Tile, read_tile
from footprints.scene import Scene

MEAN, STD = (0.45, 0.45, 0.43), (0.22, 0.20, 0.20)
"""Of aerial photographs in 0...1; what a network was trained with is in its checkpoint."""

Pixels = NDArray[np.float32]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Normalization:
    """How images in 0...1 become network input: ``(image - mean) / std`` per band."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def card(self) -> dict[str, list[float]]:
        """What a checkpoint says about it."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, image: Pixels) -> torch.Tensor:
        """(H, W, 3) in 0...1 -> (3, H, W) tensor."""
        normalized = (image - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(normalized, -1, 0), dtype=np.float32))


NORMALIZATIONS = {"source": Normalization(), "aerial": Normalization(MEAN, STD)}
"""The source's images / 255, and zero mean with unit spread for aerial photographs."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly crops are changed."""

    rotate: float = 15.0
    """Crops are turned by up to so many degrees either way (180 = any angle)."""
    zoom: float = 0.0
    """Crops are enlarged or reduced by up to exp(zoom)."""
    color: float = 0.0
    """Strength of brightness, contrast, saturation, hue, blur and noise, 0...1."""


class FootprintCrops:
    """Training samples: crops of one size with their classes.

    Args:
        found: the scenes of training, and where buildings are in them.
        ids: those to be used.
        crop: side of the crops, pixels.
        length: samples per epoch; 0 = as many as crops are needed to cover every scene once.
        balance: share of samples placed around a building pixel instead of anywhere.
        normalization: of the images.
        augment: off (None) = upright crops without changes.
    """

    def __init__(
        self, found: SceneSet, ids: Sequence[str], *, crop: int, length: int = 0, balance: float = 0.0,
        normalization: Normalization = NORMALIZATIONS["source"], augment: Augmentation | None = None,
    ) -> None:  # fmt: skip
        self.scenes = found.part(ids)
        self.spots = [found.spots[scene.id] for scene in self.scenes]
        self.crop, self.balance, self.normalization, self.augment = crop, balance, normalization, augment
        cells = [max(1, round(scene.frame.pixels / crop**2)) for scene in self.scenes]
        self._ends = np.cumsum(cells)
        self.length = length or int(self._ends[-1])
        buildings = np.array([found.counts[scene.id][1] for scene in self.scenes], np.float64)
        self._chances = buildings**0.5 / max((buildings**0.5).sum(), 1.0)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides place and augmentation."""
        index, seed = key
        rng = np.random.default_rng(seed)
        number, center = self._place(index % int(self._ends[-1]), rng)
        scene = self.scenes[number]
        image, classes = cut(scene, self._matrix(center, rng), self.crop)
        if self.augment is not None and self.augment.color > 0:
            image = change_colors(image, self.augment.color, rng)
        return {
            "image": self.normalization(image), "target": torch.from_numpy(classes.astype(np.int64)), "id": scene.id,
        }  # fmt: skip

    def _place(self, cell: int, rng: np.random.Generator) -> tuple[int, tuple[float, float]]:
        """A scene and the crop's center (row, column) in it."""
        if rng.random() < self.balance:
            number = int(rng.choice(len(self.scenes), p=self._chances))
            row, column = self.spots[number][rng.integers(len(self.spots[number]))]
            jitter = rng.uniform(-0.35, 0.35, 2) * self.crop
            return number, (float(row + jitter[0]), float(column + jitter[1]))
        number = int(np.searchsorted(self._ends, cell, side="right"))
        frame = self.scenes[number].frame
        return number, (_middle(frame.height, self.crop, rng), _middle(frame.width, self.crop, rng))

    def _matrix(self, center: tuple[float, float], rng: np.random.Generator) -> Matrix:
        """Affine map (2, 3) from the scene's (x, y) to the crop's."""
        turn, zoom, flips = 0.0, 1.0, np.ones(2)
        if self.augment is not None:
            turn = math.radians(rng.uniform(-self.augment.rotate, self.augment.rotate))
            zoom = math.exp(rng.uniform(-self.augment.zoom, self.augment.zoom))
            flips = rng.choice([-1.0, 1.0], 2)
        cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
        linear = np.array([[cos, -sin], [sin, cos]]) * flips
        shift = (self.crop - 1) / 2 - linear @ np.array([center[1], center[0]])
        return np.concatenate([linear, shift[:, None]], axis=1)


def _middle(size: int, crop: int, rng: np.random.Generator) -> float:
    """Center of a crop that lies inside the scene, or of the scene where it is smaller."""
    return (size - 1) / 2 + rng.uniform(-0.5, 0.5) * max(size - crop, 0)


def cut(scene: Scene, matrix: Matrix, side: int) -> tuple[Pixels, NDArray[np.uint8]]:
    """Cut a square out of a scene by an affine map: image (side, side, 3) in 0...1 and classes (side, side)."""
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([[-1, -1], [side, -1], [-1, side], [side, side]]) @ inverse[:, :2].T + inverse[:, 2]
    left, top = (math.floor(value) - 1 for value in corners.min(axis=0))
    right, bottom = (math.ceil(value) + 2 for value in corners.max(axis=0))
    row, height = _inside(top, bottom, scene.frame.height)
    col, width = _inside(left, right, scene.frame.width)
    image, classes = scene.read(row, col, height, width)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (col, row)
    upright = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    options: dict[str, Any] = {"dsize": (side, side), "borderMode": cv2.BORDER_REFLECT_101}
    part = cv2.warpAffine(upright, moved, flags=cv2.INTER_LINEAR, **options)
    target = cv2.warpAffine(np.ascontiguousarray(classes), moved, flags=cv2.INTER_NEAREST, **options)
    return np.moveaxis(to_unit(np.moveaxis(part, -1, 0)), 0, -1), np.asarray(target, np.uint8)


def _inside(low: int, high: int, size: int) -> tuple[int, int]:
    """Start and length of the part of ``low .. high`` that lies in ``0 .. size``, at least one pixel."""
    start = min(max(low, 0), size - 1)
    return start, max(1, min(high, size) - start)


def change_colors(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation, hue (band gains), sharpness and noise of an image (H, W, 3) in 0...1."""
    saturation = math.exp(rng.normal(0, 0.5 * strength))
    gains = np.exp(rng.normal(0, 0.1 * strength, 3) + rng.normal(0, 0.25 * strength))
    contrast = math.exp(rng.normal(0, 0.3 * strength))
    linear, offset = color_map(image, gains, contrast, saturation)
    changed = cv2.transform(image, np.column_stack([linear, offset + rng.normal(0, 0.05 * strength)]))
    return blur_and_noise(changed, strength, rng)


class FootprintTiles:
    """Validation samples: whole chips, and tiles of larger scenes whose context is ignored."""

    def __init__(self, tiles: Sequence[Tile], normalization: Normalization) -> None:
        self.tiles, self.normalization = tiles, normalization

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One tile."""
        tile = self.tiles[index]
        image, classes = read_tile(tile)
        return {
            "image": self.normalization(np.moveaxis(to_unit(image), 0, -1)),
            "target": torch.from_numpy(classes.astype(np.int64)),
            "id": tile.id,
        }
