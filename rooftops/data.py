"""Pairs on disk: ``images/images/X.{tif,tiff,jpg,jpeg,png}`` with ``label/label/X_label.tif``, or any two folders.

Every file is read once before training, so that what is wrong with it is known beforehand; pictures are kept in memory
as long as there is room.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.data.labeled import LabeledImage, Sample, class_rows, read_labeled, size_row, try_each
from common.data.pairs import Facts, Pair, join, list_images
from common.data.splits import split_ids
from common.images.ranges import ValueRanges
from common.labels import IGNORE
from rooftops.labels import Coding, read_classes

IMAGE_FOLDERS = ("images/images", "images", "image", "imgs")
LABEL_FOLDERS = ("label/label", "labels/labels", "label", "labels", "masks/masks", "masks", "mask")
CACHE_BYTES = 2 << 30
"""Pictures are kept in memory up to this many bytes; the others are read again when they are needed."""
SplitBy = Literal["picture", "prefix"]


@dataclass(frozen=True)
class Found:
    """What reading a pair once has shown."""

    size: tuple[int, int]
    counts: NDArray[np.int64]
    """Pixels of each class."""


@dataclass
class Pictures:
    """Pairs that can be used, by id; the first ones read stay in memory."""

    coding: Coding
    pairs: dict[str, Pair] = field(default_factory=dict)
    facts: dict[str, Found] = field(default_factory=dict)
    _kept: dict[str, LabeledImage] = field(default_factory=dict)
    _bytes: int = 0
    ranges: ValueRanges = field(default_factory=ValueRanges)
    """What the images' values mean, and which there are."""

    def add(self, pair: Pair) -> None:
        """Read a pair and keep it.

        Raises:
            ValueError, FileNotFoundError: it cannot be used.
        """
        picture = load_picture(pair, self.coding, self.ranges, look=True)
        valid = picture.classes[picture.classes != IGNORE]
        counts = np.bincount(valid, minlength=len(self.coding.names))
        self.facts[pair.id] = Found((picture.classes.shape[0], picture.classes.shape[1]), counts)
        self.pairs[pair.id] = pair
        size = picture.image.nbytes + picture.classes.nbytes
        if self._bytes + size <= CACHE_BYTES:
            self._kept[pair.id] = picture
            self._bytes += size

    def __getitem__(self, name: str) -> LabeledImage:
        """The picture of an id, from memory or from its files."""
        return self._kept.get(name) or load_picture(self.pairs[name], self.coding, self.ranges)

    def samples(self, ids: Iterable[str]) -> list[Sample]:
        """The pictures of these ids, read one by one."""
        return [Sample(name, name, partial(self.__getitem__, name)) for name in ids]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


def find_pairs(
    root: Path | None, *, images: Path | None = None, labels: Path | None = None
) -> tuple[list[Pair], list[str], list[str]]:
    """Find the pairs, in natural order.

    Args:
        root: folder in the task's layout.
        images: instead: a folder of images...
        labels: ...and one of labels.

    Returns:
        The pairs; a line for each image without a label; a line for each label without an image.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: nothing is found; says what was looked for.
    """
    image_folder, label_folder = _folders(root, images, labels)
    found = list_images(image_folder, "--images" if images else "--data-root")
    if not found:
        raise ValueError(f"{image_folder} holds no images (tif, tiff, jpg, jpeg, png); check the path")
    pairs, notes = join(found, list_images(label_folder, "--labels" if labels else "--data-root"))
    joined = {pair.image for pair in pairs}
    missing = [
        f"{image}: has no label; add {label_folder / f'{image.stem}_label.tif'} or remove the image"
        for image in found
        if image not in joined
    ]
    if not pairs:
        raise ValueError(
            f"no image of {image_folder} has a label in {label_folder}; X.jpg is joined with X_label.tif or X.tif"
        )
    return pairs, missing, notes[len(missing) :]


def _folders(root: Path | None, images: Path | None, labels: Path | None) -> tuple[Path, Path]:
    if images is not None and labels is not None:
        return images, labels
    assert root is not None
    if not root.is_dir():
        raise FileNotFoundError(f"--data-root {root} is not a folder; check the path")
    image_folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    label_folder = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), None)
    if image_folder is None or label_folder is None:
        raise ValueError(
            f"--data-root {root} holds no {'images/' if image_folder is None else 'label/'} folder; expected are "
            "images/images/ and label/label/ (or images/ and labels/), or give both with --images and --labels"
        )
    return image_folder, label_folder


def load_picture(pair: Pair, coding: Coding, ranges: ValueRanges | None = None, *, look: bool = False) -> LabeledImage:
    """Read a pair, see `read_labeled`."""
    return read_labeled(
        pair.id, pair.image, pair.label, lambda *size: read_classes(pair.label, coding), ranges, look=look
    )


def load_pictures(
    pairs: Sequence[Pair], coding: Coding, ranges: ValueRanges | None = None
) -> tuple[Pictures, list[str]]:
    """Read all pairs once; a line for each one that cannot be used."""
    pictures = Pictures(coding, ranges=ranges or ValueRanges())
    return pictures, try_each(pairs, pictures.add)


def audit(pictures: Pictures) -> Facts:
    """What was found, as (name, value) rows: sizes, label values with counts and shares, empty masks, tiles."""
    found, coding = list(pictures.facts.values()), pictures.coding
    counts = np.stack([one.counts for one in found])
    values = [coding.describe(v) for v in coding.values] or ["0", "255 or 1"]
    empty = int((counts[:, 1:].sum(axis=1) == 0).sum())
    groups = Counter(map(prefix, pictures.pairs))
    rows = [
        ("pairs", str(len(pictures))),
        size_row(one.size for one in found),
        *class_rows(coding.names, counts, sum(height * width for height, width in (one.size for one in found)), values),
        ("empty masks", f"{empty} (nothing but {coding.names[0]})"),
    ]
    if 1 < len(groups) < len(pictures):
        rows.append(("prefixes", f"{len(groups)}, up to {max(groups.values())} pictures each; see --split-by prefix"))
    return rows


def prefix(name: str) -> str:
    """The picture that a tile was cut from: its name without the trailing numbers, ``img12_3`` -> ``img12``."""
    match = re.fullmatch(r"(.+?)(?:[_-]\d+)+", name)
    return match[1] if match else name


def split_pictures(
    ids: Sequence[str], val_fraction: float, test_fraction: float, seed: int, by: SplitBy = "picture"
) -> dict[str, list[str]]:
    """Split ids at random; with ``prefix``, tiles of one picture stay together and fractions are of prefixes.

    Raises:
        ValueError: fewer than two ids, or prefixes.
    """
    if by == "picture":
        return split_ids(ids, val_fraction, test_fraction, seed)
    groups = sorted({prefix(name) for name in ids})
    if len(groups) < 2:
        raise ValueError(
            f"--split-by prefix: all {len(ids)} pictures have the prefix '{''.join(groups)}', so they cannot be split; "
            "name tiles <picture>_<number>, or use --split-by picture"
        )
    parts = split_ids(groups, val_fraction, test_fraction, seed)
    return {part: sorted(name for name in ids if prefix(name) in set(some)) for part, some in parts.items()}
