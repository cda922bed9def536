"""Endless training samples of generated towns: for the weights that ship, and beside the pictures of a user.

Few labels leave much out: ten pictures that all have roofs do not show bare ground, and a network that sees nothing
else forgets what it knew of it. Generated ones among them keep it in mind.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augmentation import affine_map, to_tensor
from common.data.sampling import Key
from common.labels import IGNORE
from common.samples import Sample, SegmentationData
from common.scenes.aerial import LAND, render_scene
from common.scenes.sensor import photograph

Pixels = NDArray[np.uint8]
GSD = (0.3, 0.45)
"""Finest and coarsest ground resolution of the scenes, metres per pixel."""
SIDE = 256
"""Height and width of the scenes, pixels."""
ZOOM = (0.7, 1.42)
"""Smallest and largest magnification of a crop."""
SMALL = (64, 160)
"""Side of the ground that a crop of little ground sees, pixels of the scene."""
PLAIN = 4
"""Every fourth town is of the kind that the built-in data sets show; the others are of any region."""
BESIDE = 200
"""Scenes beside a user's pictures, which each data worker renders when it first needs them (a second for 20)."""


def with_generated(
    samples: SegmentationData, share: float, groups: Sequence[Sequence[str]], side: int
) -> SegmentationData:
    """Training samples of which a share is replaced by generated ones.

    Args:
        samples: RGB images with dense targets.
        share: 0...1; 0 = the samples as they are.
        groups: for each class the classes of the generated towns that it is made of.
        side: of the samples, pixels.
    """
    return WithGenerated(samples, share, groups, side) if share else samples


class WithGenerated:
    """See `with_generated`."""

    def __init__(self, samples: SegmentationData, share: float, groups: Sequence[Sequence[str]], side: int) -> None:
        self.samples, self.share = samples, share
        self.crops = Crops(BESIDE, len(samples), side, 0)
        self.table = np.full(256, IGNORE, np.int64)
        for index, names in enumerate(groups):
            self.table[[LAND.index(name) for name in names]] = index

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.samples)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key; its seed decides whether it is generated. All have the same types."""
        if np.random.default_rng((key[1], 1)).random() < self.share:
            found = self.crops[key]
            return {**found, "target": torch.from_numpy(self.table[found["target"].numpy()])}
        found = self.samples[key]
        image = found["image"] if found["image"].is_floating_point() else found["image"] / 255
        return {**found, "image": image, "target": found["target"].long()}


def scene(seed: int, number: int, side: int) -> tuple[Pixels, Pixels]:
    """One scene at a ground resolution of its own: image (H, W, 3) and classes (H, W)."""
    rng = np.random.default_rng((seed, number))
    low, high = np.log(GSD)
    gsd = float(np.exp(rng.uniform(low, high)))
    varied = number % PLAIN > 0
    return render_scene(int(rng.integers(2**31)), side, side, gsd, undefined=False, varied=varied)


class Crops:
    """Training samples: turned, zoomed and mirrored crops of the scenes, each taken by another camera.

    Args:
        scenes: how many there are.
        length: samples per epoch.
        side: of a crop, pixels.
        seed: of the scenes.
        small: share of the crops that see little ground, as small pictures do: the rest of them is mirrored, and has
            no class.
    """

    def __init__(self, scenes: int, length: int, side: int, seed: int, small: float = 0.0) -> None:
        self.scenes, self.length, self.side, self.seed, self.small = scenes, length, side, seed, small
        self._rendered: dict[int, tuple[Pixels, Pixels]] = {}

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key; its seed decides scene, crop and camera."""
        rng = np.random.default_rng(key[1])
        number = int(rng.integers(self.scenes))
        if number not in self._rendered:
            self._rendered[number] = scene(self.seed, number, SIDE)
        image, classes = self._rendered[number]
        seen = SIDE
        if self.small and rng.random() < self.small:
            seen = int(rng.integers(*SMALL))
            top, left = rng.integers(SIDE - seen + 1, size=2)
            image, classes = (whole[top : top + seen, left : left + seen] for whole in (image, classes))
        turn, zoom = rng.integers(4) * np.pi / 2, np.exp(rng.uniform(*np.log(ZOOM)))
        flip = 1 if rng.random() < 0.5 else -1
        x, y = seen / 2 + rng.uniform(-0.5, 0.5, 2) * max(seen - 1.1 * self.side / zoom, 0)
        matrix = affine_map((y, x), self.side, turn, zoom, (flip, 1.0))
        size = (self.side, self.side)
        part = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        target = cv2.warpAffine(classes, matrix, size, flags=cv2.INTER_NEAREST, borderValue=[IGNORE])
        return sample(
            photograph(np.asarray(part, np.uint8), rng), np.asarray(target, np.uint8), f"generated town {number}"
        )


def sample(image: Pixels, classes: Pixels, name: str) -> Sample:
    """A sample: image (3, H, W) float32 in 0...1, target (H, W) int64."""
    return {"image": to_tensor(image) / 255, "target": torch.from_numpy(classes.astype(np.int64)), "id": name}
