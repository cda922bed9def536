"""Label pictures: the ISPRS palette or class indices, and back.

Index-coded labels count from 1 (impervious) to 6 (clutter) with 0 = ignored, as the usual tiling of Potsdam does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.images.rasters import read_label
from common.labels import IGNORE

Coding = Literal["auto", "palette", "index"]
Color = tuple[int, int, int]
ClassMap = NDArray[np.uint8]

CLASSES = ["impervious", "building", "low_vegetation", "tree", "car", "clutter"]
UNDEFINED: Color = (0, 0, 0)
PALETTE: dict[int, Color] = {
    0: (255, 255, 255),
    1: (0, 0, 255),
    2: (0, 255, 255),
    3: (0, 255, 0),
    4: (255, 255, 0),
    5: (255, 0, 0),
}
OTHERS: list[Color] = [
    (230, 60, 40),
    (60, 120, 230),
    (250, 200, 60),
    (40, 160, 90),
    (160, 80, 200),
    (60, 200, 210),
    (240, 130, 40),
    (150, 110, 80),
    (240, 120, 180),
    (120, 120, 120),
]
"""Of classes that are not Potsdam's."""
NAMED = 5
"""Unknown values that a message lists."""


def check_classes(classes: Sequence[str]) -> None:
    """Make sure that names of classes can be told apart in a table of points.

    Raises:
        ValueError: they cannot.
    """
    plain = {plain_name(name) for name in classes}
    if not 2 <= len(plain) == len(classes) <= 100 or "" in plain:
        raise ValueError(f"--classes {' '.join(classes)}: two or more different names are needed, 100 at most")


def plain_name(name: str) -> str:
    """How names of classes are compared: ``Low vegetation`` is ``low_vegetation``."""
    return name.strip().lower().replace(" ", "_")


def palette_of(classes: Sequence[str]) -> dict[int, Color]:
    """A color for each class: Potsdam's own, or distinct ones."""
    if list(classes) == CLASSES:
        return PALETTE
    return {index: OTHERS[index % len(OTHERS)] for index in range(len(classes))}


def encode(colors: NDArray[Any], *, source: str = "label", ignore_unknown: bool = False) -> ClassMap:
    """Palette colors (H, W, 3) -> class indices (H, W), undefined = 255.

    Args:
        colors: whole numbers.
        source: the file, for the message.
        ignore_unknown: read colors outside the palette as undefined.

    Raises:
        ValueError: colors outside the palette; names them with their counts.
    """
    wide = colors.astype(np.int64)
    keys = (wide[..., 0] << 32) | (wide[..., 1] << 16) | wide[..., 2]
    known = {_key(color): index for index, color in PALETTE.items()} | {_key(UNDEFINED): IGNORE}
    return _translate(keys, known, source, "color", ignore_unknown)


def decode(classes: ClassMap, palette: Mapping[int, Color] = PALETTE) -> NDArray[np.uint8]:
    """Class indices (H, W) -> palette colors (H, W, 3); 255 = undefined black."""
    table = np.zeros((256, 3), np.uint8)
    for index, color in palette.items():
        table[index] = color
    return table[classes]


def encode_indices(values: NDArray[Any], *, source: str = "label", ignore_unknown: bool = False) -> ClassMap:
    """Index-coded labels (H, W), 1...6 and 0 or 255 = ignored -> class indices 0...5, ignored = 255.

    Raises:
        ValueError: other values; names them with their counts.
    """
    known = {index + 1: index for index in PALETTE} | {0: IGNORE, 255: IGNORE}
    return _translate(values.astype(np.int64), known, source, "value", ignore_unknown)


def read_classes(path: Path, coding: Coding = "auto", *, ignore_unknown: bool = False) -> ClassMap:
    """Read a label picture as class indices (H, W) uint8, 255 = ignored.

    Args:
        path: picture of three bands (palette), or one (indices; a palette PNG counts as colors).
        coding: ``auto`` tells by the number of bands.
        ignore_unknown: ignore unknown values instead of refusing them.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged, of the other coding, or has unknown values.
    """
    label = read_label(path, colors=coding != "index")
    if coding == "palette" and label.ndim == 2:
        raise ValueError(f"{path}: has one band, palette labels have three; use --label-coding index or auto")
    if coding == "index" and label.ndim == 3:
        if not (label == label[..., :1]).all():
            raise ValueError(f"{path}: has colors, index labels have one band; use --label-coding palette or auto")
        label = label[..., 0]
    encoder = encode_indices if label.ndim == 2 else encode
    return encoder(label, source=str(path), ignore_unknown=ignore_unknown)


def class_counts(maps: Sequence[ClassMap], count: int = len(CLASSES)) -> NDArray[np.int64]:
    """Pixels of each of ``count`` classes over all maps, int64; ignored pixels are not counted."""
    counts = [np.bincount(classes[classes != IGNORE].ravel(), minlength=count) for classes in maps]
    return np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(count, np.int64)


def _key(color: Color) -> int:
    return (color[0] << 32) | (color[1] << 16) | color[2]


def _translate(
    keys: NDArray[np.int64], known: Mapping[int, int], source: str, what: str, ignore_unknown: bool
) -> ClassMap:
    values, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    unknown = Counter({int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in known})
    if unknown and not ignore_unknown:
        listed = ", ".join(f"{_show(value, what)} in {count} pixels" for value, count in unknown.most_common(NAMED))
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise ValueError(f"{source}: unknown {what} {listed}{more}; correct the label, or pass --unknown ignore")
    table = np.array([known.get(int(value), IGNORE) for value in values], np.uint8)
    return table[inverse].reshape(keys.shape)


def _show(value: int, what: str) -> str:
    return f"({value >> 32}, {value >> 16 & 0xFFFF}, {value & 0xFFFF})" if what == "color" else str(value)
