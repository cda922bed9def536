"""Samples of frames: what the network is trained and validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.labeled import LabeledImage
from common.data.sampling import Key
from common.images.ranges import Range
from common.labels import IGNORE
from hela_nuclei.data import LoadedFrame
from hela_nuclei.frames import frame_range, scale_frame
from hela_nuclei.separate import distance_map


def semantic_target(labels: NDArray[np.int32], border: int) -> NDArray[np.uint8]:
    """Instance ids -> 1 = nucleus, 0 = background, 255 = background within ``border`` px of the edge."""
    target = (labels > 0).astype(np.uint8)
    if border > 0:
        band = np.ones(labels.shape, bool)
        band[border:-border, border:-border] = False
        target[band & (labels == 0)] = IGNORE
    return target


@dataclass(frozen=True)
class LabeledFrame(LabeledImage):
    """A frame (1, H, W) in its own number type, and where nuclei are; None = by its own minimum and maximum."""

    value_range: Range | None = None

    @classmethod
    def of(cls, item: LoadedFrame, border: int) -> LabeledFrame:
        """With background within ``border`` px of the edge ignored."""
        return cls(item.frame.id, item.image[None], semantic_target(item.labels, border), item.value_range)

    def unit(self) -> NDArray[np.float32]:
        """The image (1, H, W) as float32 0...1."""
        return scale_frame(self.image[0], self.value_range)[None]


@dataclass(frozen=True)
class _Maps:
    """What samples are cut from. Eight bytes a pixel fewer than as the network takes them: sequences are long."""

    name: str
    image: NDArray[np.generic]
    value_range: Range
    target: NDArray[np.uint8]
    distance: NDArray[np.float16]

    @classmethod
    def of(cls, item: LoadedFrame, border: int) -> _Maps:
        distance = distance_map(item.labels).astype(np.float16)
        target = semantic_target(item.labels, border)
        return cls(item.frame.id, item.image, item.value_range or frame_range(item.image), target, distance)

    def sample(self, image: NDArray[np.float32], target: NDArray[np.uint8], distance: NDArray[Any]) -> dict[str, Any]:
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "target": torch.from_numpy(target.astype(np.int64)),
            "distance": torch.from_numpy(distance.astype(np.float32)),
            "id": self.name,
        }


class FrameCrops:
    """Training samples: random crops (or whole frames) with flips, quarter turns and changes of brightness and noise.

    Args:
        loaded: the frames.
        crop: side of the square crops in pixels; 0 = whole frames, which must then be of one size.
        length: samples per epoch; 0 = one per frame.
        border: band in which background is ignored, pixels.
        augment: off = crops without changes.

    Raises:
        ValueError: whole frames of several sizes.
    """

    def __init__(
        self, loaded: Sequence[LoadedFrame], *, crop: int, length: int = 0, border: int = 25, augment: bool = True
    ) -> None:
        if not crop and len({item.image.shape for item in loaded}) > 1:
            raise ValueError("whole frames of several sizes cannot share a batch; set --crop-size 256")
        self.crop, self.length, self.augment = crop, length or len(loaded), augment
        self.frames = [_Maps.of(item, border) for item in loaded]

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides crop and augmentation."""
        index, seed = key
        maps = self.frames[index % len(self.frames)]
        rows, columns = self._window(maps.target.shape, seed)
        image = self._fill(scale_frame(maps.image[rows, columns], maps.value_range), 0)
        target = self._fill(maps.target[rows, columns], IGNORE)
        distance = self._fill(maps.distance[rows, columns], 0)
        if self.augment:
            rng = np.random.default_rng(seed)
            turns = int(rng.integers(4)) if image.shape[0] == image.shape[1] else 2 * int(rng.integers(2))
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            image, target, distance = (np.rot90(m, turns)[:, flip] for m in (image, target, distance))
            gain, offset, noise = np.exp(rng.normal(0, 0.25)), rng.normal(0, 0.01), rng.uniform(0, 0.002)
            image = image * np.float32(gain) + np.float32(offset)
            image += np.float32(noise) * rng.standard_normal(image.shape, np.float32)
        return maps.sample(image, target, distance)

    def _window(self, shape: tuple[int, ...], seed: int) -> tuple[slice, slice]:
        if not self.crop:
            return slice(None), slice(None)
        rng = np.random.default_rng((seed, 1))
        row, column = (int(rng.integers(max(size - self.crop, 0) + 1)) for size in shape)
        return slice(row, row + self.crop), slice(column, column + self.crop)

    def _fill(self, part: NDArray[Any], value: int) -> NDArray[Any]:
        """Fill up the crop where the frame is smaller."""
        missing = [(0, max(self.crop - size, 0)) for size in part.shape]
        return np.pad(part, missing, constant_values=value) if any(m for _, m in missing) else part


class WholeFrames:
    """Validation samples: whole frames, unchanged; ``border`` as in training (0 = every pixel counts)."""

    def __init__(self, loaded: Sequence[LoadedFrame], *, border: int = 0) -> None:
        self.frames = [_Maps.of(item, border) for item in loaded]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One frame."""
        maps = self.frames[index]
        return maps.sample(scale_frame(maps.image, maps.value_range), maps.target, maps.distance)
