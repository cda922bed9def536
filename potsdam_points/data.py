"""Patches on disk: ``Images/Image_{id}.tif`` with ``Labels/Label_{id}.tif``, or any two folders joined by stem.

In place of dense labels a table of points can be given; then only its pixels are labeled, in validation as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common.command.cli import say
from common.data.inputs import natural_key
from common.data.labeled import LabeledImage, class_rows, read_labeled, size_row, try_each
from common.data.pairs import Facts, join, list_images, same_stem
from common.data.splits import split_ids
from common.images.ranges import ValueRanges
from potsdam_points.labels import CLASSES, ClassMap, Coding, class_counts, read_classes
from potsdam_points.points import Points, find_points, from_points, read_points

LAYOUTS = (("Images", "Labels"), ("images", "labels"), ("images", "masks"), ("img_dir", "ann_dir"))
Unknown = Literal["refuse", "ignore"]


@dataclass(frozen=True)
class Patch:
    """One image and what is known about its label: a picture or points."""

    id: str
    image: Path
    label: Path | None = None
    points: Points | None = None
    points_file: Path | None = None


def patch_id(stem: str) -> str:
    """``Image_7`` and ``Label_7`` -> ``7``; other stems without ``_label``."""
    for prefix in ("Image_", "Label_"):
        if stem.startswith(prefix):
            return stem.removeprefix(prefix)
    return same_stem(stem)


def find_patches(
    root: Path | None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    points_file: Path | None = None,
    classes: Sequence[str] = CLASSES,
) -> tuple[list[Patch], list[str]]:
    """Find the patches, in the natural order of their ids.

    Args:
        root: folder that holds ``Images`` and ``Labels`` (or ``patches/`` with both).
        images: instead: a folder of images...
        labels: ...and one of labels.
        points_file: table of points in place of labels...
        classes: ...of these classes; labels know Potsdam's alone.

    Returns:
        The patches, and a line for each file without a partner.

    Raises:
        FileNotFoundError: a folder or file does not exist.
        ValueError: nothing is found, or labels are to tell other classes; says what was looked for.
    """
    if points_file is None and list(classes) != CLASSES:
        raise ValueError(
            f"labels are read as Potsdam's classes ({', '.join(CLASSES)}), the network tells {', '.join(classes)}: "
            "give a table of points of those with --points-file"
        )
    image_folder, label_folder = _folders(root, images, labels, needs_labels=points_file is None)
    found = list_images(image_folder, "--images" if images else "--data-root")
    if points_file is not None:
        patches, notes = _with_points(found, points_file, classes)
    else:
        assert label_folder is not None
        pairs, notes = join(found, list_images(label_folder, "--labels" if labels else "--data-root"), key=patch_id)
        patches = [Patch(pair.id, pair.image, pair.label) for pair in pairs]
    if not patches:
        partner = points_file or label_folder
        raise ValueError(
            f"no image of {image_folder} has a label in {partner}; they are joined by id (Image_7, Label_7) or stem"
        )
    return sorted(patches, key=lambda patch: natural_key(patch.id)), notes


def _folders(
    root: Path | None, images: Path | None, labels: Path | None, *, needs_labels: bool
) -> tuple[Path, Path | None]:
    if images is not None:
        return images, labels
    assert root is not None
    if not root.is_dir():
        raise FileNotFoundError(f"--data-root {root} is not a folder")
    for folder in (root, root / "patches"):
        for image_name, label_name in LAYOUTS:
            if (folder / image_name).is_dir() and ((folder / label_name).is_dir() or not needs_labels):
                return folder / image_name, folder / label_name
    raise ValueError(f"--data-root {root} holds no Images/ with Labels/; give both folders with --images and --labels")


def _with_points(images: Sequence[Path], points_file: Path, classes: Sequence[str]) -> tuple[list[Patch], list[str]]:
    table = read_points(points_file, classes)
    patches, notes = [], []
    for image in images:
        points = find_points(table, patch_id(image.stem))
        if points is None:
            points = find_points(table, image.stem)
        if points is None:
            notes.append(f"{image}: no points in {points_file}, left out")
        else:
            patches.append(Patch(patch_id(image.stem), image, points=points, points_file=points_file))
    return patches, notes


def load_patch(
    patch: Patch, coding: Coding = "auto", unknown: Unknown = "refuse", ranges: ValueRanges | None = None
) -> LabeledImage:
    """Read a patch, see `read_labeled`."""

    def classes(height: int, width: int) -> ClassMap:
        if patch.points is not None:
            return from_points(patch.points, height, width, source=str(patch.image), table=patch.points_file)
        assert patch.label is not None
        return read_classes(patch.label, coding, ignore_unknown=unknown == "ignore")

    return read_labeled(patch.id, patch.image, patch.label, classes, ranges)


def load_patches(
    patches: Sequence[Patch], coding: Coding = "auto", unknown: Unknown = "refuse", ranges: ValueRanges | None = None
) -> tuple[list[LabeledImage], list[str]]:
    """Read all patches; a line for each one that cannot be used."""
    loaded: list[LabeledImage] = []
    problems = try_each(patches, lambda patch: loaded.append(load_patch(patch, coding, unknown, ranges)))
    return loaded, problems


def audit(loaded: Sequence[LabeledImage], classes: Sequence[str] = CLASSES) -> Facts:
    """What was found, as (name, value) rows: sizes, label values with counts and shares, unlabeled pixels."""
    counts = np.stack([class_counts([patch.classes], len(classes)) for patch in loaded])
    rows = [
        ("pairs", str(len(loaded))),
        size_row(patch.classes.shape for patch in loaded),
        *class_rows(classes, counts, sum(patch.classes.size for patch in loaded)),
    ]
    absent = [name for name, n in zip(classes, counts.sum(axis=0), strict=True) if n == 0]
    return [*rows, ("never seen", ", ".join(absent))] if absent else rows


def expand_ids(words: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Ids named one by one or as ranges of numbers, ``7 20-29``, in the order of ``ids``.

    Raises:
        ValueError: a word names none of ``ids``.
    """
    wanted: set[str] = set()
    for word in words:
        first, _, last = word.partition("-")
        named = {name for name in ids if name == word or _lies_between(name, first, last)}
        if not named:
            raise ValueError(f"--val-ids {word} is no id of a usable patch; they go from {ids[0]} to {ids[-1]}")
        wanted |= named
    return [name for name in ids if name in wanted]


def _lies_between(name: str, first: str, last: str) -> bool:
    """Whether an id is a whole number of a range; leading zeros make another name."""
    if not all(text.isascii() and text.isdigit() for text in (name, first, last)) or name != name.lstrip("0").zfill(1):
        return False
    return _size_order(first) <= _size_order(name) <= _size_order(last)


def _size_order(digits: str) -> tuple[int, str]:
    """Orders numbers of any length by their size."""
    plain = digits.lstrip("0")
    return len(plain), plain


def split_patches(
    ids: Sequence[str],
    val_last: int,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    val_ids: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Split ids: ``val_ids`` are validation, else the last ``val_last``, or a random part with ``val_last`` 0.

    There is a test part only in a random split. Where there are no more than ``val_last`` patches, the last eighth is
    taken, which is the source's share.

    Raises:
        ValueError: fewer than two patches, none left for training, or an id that does not exist.
    """
    if val_ids:
        chosen = expand_ids(val_ids, ids)
        train = [name for name in ids if name not in chosen]
        if not train:
            raise ValueError(f"--val-ids takes all {len(ids)} patches; none is left to train on")
        return {"train": train, "val": chosen, "test": []}
    if val_last == 0:
        return split_ids(ids, val_fraction, test_fraction, seed)
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} usable patch(es) found; training needs at least 2, one of them for validation")
    if val_last >= len(ids):
        fewer = max(1, len(ids) // 8)
        say(
            f"note: --val-last {val_last} would leave none of the {len(ids)} patches to train on; "
            f"the last {fewer} are taken"
        )
        val_last = fewer
    ordered = sorted(ids, key=natural_key)
    return {"train": ordered[:-val_last], "val": ordered[-val_last:], "test": []}
