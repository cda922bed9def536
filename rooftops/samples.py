"""Training windows and validation pictures.

All pictures are read at one scale, the one that makes a picture of median size as large as the network's input, so that
a roof has the same size in pixels wherever it comes from. A training sample is a square window at that scale: the whole
picture where it fits, else a part of it; what lies beyond the edge is mirrored and ignored. A window, its class map and
the random changes depend on the sample's key alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from common.data.sampling import Key
from common.inference.files import normalize, rescale
from common.labels import IGNORE
from rooftops.data import Pictures
from rooftops.model import NORMALIZATION

CORNERS = 2**0.5
"""A window that is turned by any angle is cut this much larger, so that no corner stays empty."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly training windows are changed."""

    zoom: float = 0.0
    """Windows are enlarged or reduced by up to exp(zoom)."""
    rotate: bool = False
    """Any angle; else quarter turns."""
    color: float = 0.0
    """Strength of brightness, contrast, saturation and hue changes, 0...1."""
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
        augment: Augmentation | None = None,
    ) -> None:
        self.pictures, self.ids, self.side, self.scale = pictures, list(ids), side, scale
        self.length, self.augment = length or len(ids), augment
        self.colors = _color_changes(augment) if augment else None

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides window and changes."""
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, target = self._window(self.ids[index % len(self.ids)])
            if self.augment and _happens(self.augment.cutmix):
                other = self._window(self.ids[int(torch.randint(len(self.ids), ()))])
                image, target = paste(image, target, *other)
        return {
            "image": to_input(image.to(torch.float32) / 255),
            "target": target.long(),
            "id": self.ids[index % len(self.ids)],
        }

    def _window(self, name: str) -> tuple[Tensor, Tensor]:
        """Cut and change a window of a picture: image (3, side, side) uint8, classes (side, side) uint8."""
        picture, augment = self.pictures[name], self.augment
        zoom = float(np.exp(_uniform(-augment.zoom, augment.zoom))) if augment else 1.0
        turned = bool(augment and augment.rotate)
        side = round(self.side * CORNERS) if turned else self.side
        image, target = cut(
            as_bytes(picture.image),
            picture.classes,
            round(side / self.scale / zoom),
            side,
            shift=(_uniform(0, 1), _uniform(0, 1)) if augment else (0.5, 0.5),
            reach=round(self.side / self.scale / zoom),
        )
        if augment:
            image, target = turn(image, target, any_angle=turned, side=self.side)
        if self.colors:
            image = self.colors(image)
        return image, target


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _happens(chance: float) -> bool:
    return chance > 0 and _uniform(0, 1) < chance


def as_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image in 0...1 as 0...255; bytes stay what they are."""
    return image if image.dtype == np.uint8 else np.round(image * 255).astype(np.uint8)


def cut(
    image: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    window: int,
    side: int,
    *,
    shift: tuple[float, float],
    reach: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut a square window out of a picture and resize it: the image smoothed, the classes by nearest neighbor.

    Args:
        image: (3, H, W).
        classes: (H, W).
        window: side in pixels of the picture; may be larger than it.
        side: side of the result.
        shift: where the window lies between the first and the last place at which its middle part is in the picture.
        reach: side of that middle part; default the whole window.

    Returns:
        (3, side, side) uint8 and (side, side) uint8; mirrored and 255 beyond the edge.
    """
    reach = window if reach is None else reach
    starts = [round((size - reach) * at) - (window - reach) // 2 for size, at in zip(classes.shape, shift, strict=True)]
    rows, columns = (slice(max(start, 0), start + window) for start in starts)
    beyond = [
        (max(-start, 0), max(start + window - size, 0)) for start, size in zip(starts, classes.shape, strict=True)
    ]
    part = np.pad(image[:, rows, columns], ((0, 0), *beyond), mode="symmetric")
    known = np.pad(classes[rows, columns], beyond, constant_values=IGNORE)
    nearest = tv.resize(torch.from_numpy(known)[None], [side, side], InterpolationMode.NEAREST_EXACT)
    return tv.resize(torch.from_numpy(part), [side, side], antialias=True), nearest[0]


def turn(image: Tensor, classes: Tensor, *, any_angle: bool, side: int) -> tuple[Tensor, Tensor]:
    """Flip and turn at random, both alike; of a larger square that is turned by any angle, the middle is kept."""
    quarters = int(torch.randint(4, ()))
    image, classes = torch.rot90(image, quarters, (-2, -1)), torch.rot90(classes, quarters, (-2, -1))
    changes: list[v2.Transform] = [v2.RandomHorizontalFlip()]
    if any_angle:
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
        changes += [v2.RandomRotation(45, InterpolationMode.BILINEAR, fill=fill), v2.CenterCrop(side)]
    image, classes = v2.Compose(changes)(tv_tensors.Image(image), tv_tensors.Mask(classes[None]))
    return image.as_subclass(Tensor), classes[0].as_subclass(Tensor)


def _color_changes(augment: Augmentation) -> v2.Transform | None:
    """Brightness, contrast, saturation, hue, now and then grey or blurred; None = no change."""
    strength = augment.color
    changes: list[v2.Transform] = []
    if strength > 0:
        changes += [
            v2.ColorJitter(0.5 * strength, 0.5 * strength, 0.6 * strength, 0.08 * strength),
            v2.RandomGrayscale(0.15 * strength),
        ]
    if augment.blur > 0:
        changes.append(v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], p=augment.blur))
    return v2.Compose(changes) if changes else None


def paste(image: Tensor, classes: Tensor, other: Tensor, other_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Replace a random rectangle by that of another sample (CutMix, Yun et al. 2019)."""
    side = classes.shape[0]
    height, width = (round(side * _uniform(0.25, 0.5)) for _ in range(2))
    top, left = int(torch.randint(side - height + 1, ())), int(torch.randint(side - width + 1, ()))
    place = (..., slice(top, top + height), slice(left, left + width))
    image, classes = image.clone(), classes.clone()
    image[place], classes[place] = other[place], other_classes[place]
    return image, classes


def to_input(image: Tensor) -> Tensor:
    """(3, H, W) in 0...1 -> normalized."""
    return normalize(image[None], NORMALIZATION)[0].contiguous()


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
            "image": to_input(small),
            "target": torch.from_numpy(picture.classes.astype(np.int64)),
            "id": picture.id,
        }
