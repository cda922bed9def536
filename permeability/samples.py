"""Training windows at random places, and the grid of validation tiles, as tensors for a network.

Places are drawn by area, or around pixels of a class drawn evenly. A window that is neither turned nor scaled is read
as it is; any other one is cut by one affine map out of the part of the site that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augmentation import (
    Augmentation,
    Classes,
    Place,
    affine_map,
    blur_and_noise,
    color_map,
    cut,
    middle,
    near,
)
from common.data.sampling import Key
from common.images.ranges import to_unit
from common.images.windows import Window
from common.labels import IGNORE
from permeability.data import SiteSet, Tile
from permeability.site import Site

NORMALIZATION = {"mean": [0.4312, 0.4267, 0.3845], "std": [0.2263, 0.2065, 0.1923]}
"""Of PNOA orthophotos, in 0...1."""
LEAST_SPREAD = 0.02
"""Standard deviations below this (a band without content) are not divided by."""


def measure(
    found: SiteSet, ids: Sequence[str], *, crop: int, channels: int, count: int, seed: int
) -> dict[str, list[float]]:
    """Mean and standard deviation per band over random windows, pixels without meaning left out.

    Args:
        found: the sites.
        ids: those of training.
        crop: side of the windows, pixels.
        channels: bands.
        count: number of windows.
        seed: of their places.
    """
    windows = TrainingWindows(found, ids, crop=crop, channels=channels, length=count)
    total, squares, pixels = np.zeros(channels), np.zeros(channels), 0
    for key in zip(range(count), np.random.default_rng(seed).integers(0, 2**31, count).tolist(), strict=True):
        image, classes = windows.read(key)
        known = image[:, classes != IGNORE].astype(np.float64)
        values = known / 255 if image.dtype == np.uint8 else known
        total, squares, pixels = total + values.sum(axis=1), squares + (values**2).sum(axis=1), pixels + values.shape[1]
    if not pixels:
        return {"mean": [0.5] * channels, "std": [0.25] * channels}
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    spread = np.maximum(std, LEAST_SPREAD)
    return {name: [round(v, 5) for v in values.tolist()] for name, values in (("mean", mean), ("std", spread))}


@dataclass(frozen=True)
class WindowAugmentation(Augmentation):
    """How windows are changed; the source's recipe has horizontal flips alone."""

    flips: bool = False
    """Flip along both axes and turn by quarters, not only left to right."""

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated."""
        return self.rotate > 0 or self.zoom > 0


class TrainingWindows:
    """Training samples: windows of one size with their classes.

    Args:
        found: the sites, and where classes are in them.
        ids: those to be used.
        crop: side of the windows, pixels.
        length: samples per epoch; 0 = as many as cover every site once.
        balance: share of the windows around a pixel of a class drawn evenly; the others are drawn by area.
        channels: bands of the image.
        augment: None = windows as they are.
    """

    def __init__(
        self,
        found: SiteSet,
        ids: Sequence[str],
        *,
        crop: int,
        length: int = 0,
        balance: float = 0.0,
        channels: int = 3,
        augment: WindowAugmentation | None = None,
    ) -> None:
        self.sites = found.part(ids)
        self.spots = [found.spots[site.id] for site in self.sites]
        self.crop, self.balance, self.channels, self.augment = crop, balance, channels, augment
        areas = np.cumsum([site.window.height * site.window.width for site in self.sites])
        self.length = length or max(1, round(areas[-1] / crop**2))
        self._up_to_area = areas / areas[-1]
        known = np.cumsum([np.sqrt(found.counts[site.id][:2]) for site in self.sites], axis=0)
        self._classes = [index for index in range(2) if known[-1, index] > 0]
        self._up_to_class = known / np.maximum(known[-1], 1.0)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides place and augmentation."""
        site, center, rng = self._draw(key)
        image, classes = self._cut(site, center, rng)
        return sample(image, classes, site.id)

    def read(self, key: Key) -> tuple[NDArray[Any], Classes]:
        """Image and classes of a sample's window as they are in the files."""
        site, center, _ = self._draw(key)
        return site.read(around(center, self.crop), self.channels)

    def _draw(self, key: Key) -> tuple[Site, Place, np.random.Generator]:
        """A site, the window's center (row, column) in it, and the generator for what follows."""
        rng = np.random.default_rng(key[1])
        if self._classes and rng.random() < self.balance:
            index = self._classes[rng.integers(len(self._classes))]
            number = int(np.searchsorted(self._up_to_class[:, index], rng.random(), side="right"))
            places = self.spots[number][index]
            return self.sites[number], near(places[rng.integers(len(places))], self.crop, rng), rng
        number = int(np.searchsorted(self._up_to_area, rng.random(), side="right"))
        area = self.sites[number].window
        row = middle(area.height, self.crop, rng, area.row)
        return self.sites[number], (row, middle(area.width, self.crop, rng, area.col)), rng

    def _cut(self, site: Site, center: Place, rng: np.random.Generator) -> tuple[NDArray[Any], Classes]:
        augment = self.augment
        if augment is None:
            return site.read(around(center, self.crop), self.channels)
        upright = not augment.resamples
        if upright:
            image, classes = site.read(around(center, self.crop), self.channels)
        else:
            turn = math.radians(rng.uniform(-augment.rotate, augment.rotate))
            zoom = math.exp(rng.uniform(-augment.zoom, augment.zoom))
            matrix = affine_map(center, self.crop, turn, zoom)
            bands, classes = cut(lambda window: site.read(window, self.channels), matrix, self.crop, outside=IGNORE)
            image = np.moveaxis(bands, -1, 0)
        if rng.random() < 0.5:
            image, classes = image[..., ::-1], classes[:, ::-1]
        if augment.flips:
            image, classes = quarter_turns(image, classes, int(rng.integers(4)))
        if augment.color > 0:
            image = change_colors(image, augment.color, rng)
        return image, classes


def around(center: Place, side: int) -> Window:
    """The square window of whole pixels around a place."""
    return Window(round(center[0] - (side - 1) / 2), round(center[1] - (side - 1) / 2), side, side)


def quarter_turns(image: NDArray[Any], classes: Classes, count: int) -> tuple[NDArray[Any], Classes]:
    """Turn both by so many right angles."""
    return np.rot90(image, count, axes=(1, 2)), np.rot90(classes, count)


def change_colors(image: NDArray[Any], strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Change brightness, contrast, saturation (of RGB), band gains, sharpness and noise of an image.

    Args:
        image: (C, H, W) uint8, or float32 in 0...1.
        strength: 0...1.
        rng: what is drawn from.

    Returns:
        (C, H, W) as it came.
    """
    bands = np.ascontiguousarray(np.moveaxis(to_unit(image), 0, -1))
    count = bands.shape[-1]
    gains = np.exp(rng.normal(0, 0.1 * strength, count) + rng.normal(0, 0.25 * strength))
    contrast, saturation = math.exp(rng.normal(0, 0.3 * strength)), math.exp(rng.normal(0, 0.5 * strength))
    linear, offset = color_map(bands, gains, contrast, saturation)
    offset = offset + rng.normal(0, 0.05 * strength)
    changed = bands @ linear.T.astype(np.float32) + offset.astype(np.float32)
    result = np.moveaxis(blur_and_noise(changed, strength, rng), -1, 0)
    return np.rint(result * 255).astype(np.uint8) if image.dtype == np.uint8 else result


class ValidationTiles:
    """Validation samples: the tiles of a grid, whose context is ignored."""

    def __init__(self, tiles: Sequence[Tile], channels: int = 3) -> None:
        self.tiles, self.channels = tiles, channels

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One tile."""
        tile = self.tiles[index]
        pair = tile.read(self.channels)
        return sample(pair.image, pair.classes, pair.id)


def sample(image: NDArray[Any], classes: Classes, name: str) -> dict[str, Any]:
    """A sample: image (C, H, W) uint8, or float32 in 0...1, and target (H, W) uint8 (losses take any whole type)."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "target": torch.from_numpy(np.ascontiguousarray(classes)),
        "id": name,
    }
