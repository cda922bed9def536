"""What a label's values mean: grey 0 / 255 for rooftops, or any classes that a YAML file names.

A file for ``--classes`` has one line for each class, ``name: value``, in the order of the class indices (the first is
the background). A value is a grey value or index (``roof: 255``) or a color (``roof: [255, 0, 0]`` or
``roof: "#ff0000"``); the name ``ignore`` marks pixels that are not scored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command.yaml_file import load_yaml
from common.images.gdal import quiet
from common.images.pictures import open_picture
from common.images.rasters import read_label
from common.labels import IGNORE

ClassMap = NDArray[np.uint8]
Color = tuple[int, int, int]
PALETTE: tuple[Color, ...] = (
    (60, 60, 60), (230, 70, 50), (70, 130, 230), (250, 190, 40), (90, 180, 90), (170, 90, 200), (60, 200, 200),
    (240, 130, 170), (150, 110, 70), (200, 220, 110),
)  # fmt: skip
"""Display colors of the classes, where the labels have none of their own."""
REMEDY = "mend the label, or say with --classes FILE.yaml what its values mean"
SHOWN = 6


@dataclass(frozen=True)
class Coding:
    """Which value in the label files stands for which class."""

    names: tuple[str, ...] = ("background", "roof")
    values: tuple[int, ...] = ()
    """Value of each class; colors as 0xRRGGBB. Empty = rooftops in grey: 0 and 255, or 0 and 1."""
    colored: bool = False
    ignored: int | None = None
    """Value of the pixels that are not scored."""

    @property
    def palette(self) -> dict[int, Color]:
        """Display color of each class index."""
        if self.colored:
            return {index: (v >> 16, v >> 8 & 255, v & 255) for index, v in enumerate(self.values)}
        return {index: PALETTE[index % len(PALETTE)] for index in range(len(self.names))}

    def describe(self, value: int) -> str:
        """A value as it is written in the label: a number, or (r, g, b)."""
        return str((value >> 16, value >> 8 & 255, value & 255)) if self.colored else str(value)


def read_coding(path: Path | None) -> Coding:
    """Read a file of classes; None = the rooftops' own coding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping of two or more names to different values of one kind.
    """
    if path is None:
        return Coding()
    table = load_yaml("--classes", path)
    if not isinstance(table, dict):
        raise ValueError(f"--classes {path} holds no mapping; write one 'name: value' line for each class")
    codes = {name: _code(value, name, path) for name, value in table.items()}
    kinds = {colored for colored, _ in codes.values()}
    if len(kinds) > 1:
        raise ValueError(f"--classes {path} mixes colors and single values; use one kind for all classes")
    values = {name: value for name, (_, value) in codes.items()}
    if len(set(values.values())) < len(values):
        raise ValueError(f"--classes {path} gives two classes the same value; each needs one of its own")
    ignored = values.pop("ignore", None)
    if not 2 <= len(values) <= IGNORE:
        raise ValueError(f"--classes {path} names {len(values)} class(es); 2 to {IGNORE} are possible")
    return Coding(tuple(values), tuple(values.values()), kinds == {True}, ignored)


def _code(value: Any, name: str, path: Path) -> tuple[bool, int]:  # noqa: ANN401 - whatever YAML holds
    """Whether a YAML value is a color, and its code."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return True, int(value[1:], 16)
    numbers = [int(v) for v in value if re.fullmatch("[0-9]{1,5}", str(v))] if isinstance(value, list) else []
    if len(numbers) == 3 == len(value) and max(numbers) <= 255:
        return True, numbers[0] << 16 | numbers[1] << 8 | numbers[2]
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value) and int(value) <= 65535:
        return False, int(value)
    raise ValueError(
        f"--classes {path}: {name}: {value!r} is neither a whole number nor a color [r, g, b] or '#rrggbb'"
    )


def read_classes(path: Path, coding: Coding) -> ClassMap:
    """Read a label as class indices (H, W), 255 = ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, in another coding, or holds unknown values; says which, how often, and what to do.
    """
    if not coding.values and is_palette_picture(path):
        raise ValueError(
            f"{path}: is a palette picture, whose numbers stand for colors; save it as grey 0 / 255, "
            "or say with --classes FILE.yaml what its colors (or indices) mean"
        )
    values = _plain(read_label(path, colors=coding.colored or not coding.values), coding, path)
    found, counts = np.unique(values, return_counts=True)
    known = _table(coding, found.tolist(), path)
    unknown = [(int(v), int(n)) for v, n in zip(found, counts, strict=True) if int(v) not in known]
    if unknown:
        listed = ", ".join(f"{coding.describe(v)} in {n} pixels" for v, n in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        allowed = ", ".join(coding.describe(v) for v in coding.values) if coding.values else "0 and 255 (or 0 and 1)"
        raise ValueError(f"{path}: unknown value {listed}{more}; known are {allowed}: {REMEDY}")
    indices = np.array([known[int(v)] for v in found], np.uint8)
    return indices[np.searchsorted(found, values)]


def is_palette_picture(path: Path) -> bool:
    """Whether a picture that can be opened stores indices into a palette (TIFF color tables only decorate)."""
    if path.suffix.lower() in (".tif", ".tiff") or not path.is_file():
        return False
    try:
        with quiet(), open_picture(path) as picture:
            return picture.mode in ("P", "PA")
    except Exception:  # no picture: reading it says so
        return False


def _plain(label: NDArray[Any], coding: Coding, path: Path) -> NDArray[np.int64]:
    """One number per pixel, in the coding's kind."""
    wide = label.astype(np.int64)
    grey = label.ndim == 2 or bool((label == label[..., :1]).all())
    if coding.colored:
        if label.ndim == 2:
            wide = np.repeat(wide[..., None], 3, axis=2)
        return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
    if not grey:
        raise ValueError(f"{path}: is in color, grey values are expected; {REMEDY}")
    return wide if label.ndim == 2 else wide[..., 0]


def _table(coding: Coding, found: list[int], path: Path) -> dict[int, int]:
    """Class index of each known value."""
    if coding.values:
        table = {value: index for index, value in enumerate(coding.values)}
        return table if coding.ignored is None else {**table, coding.ignored: IGNORE}
    if {1, 255} <= set(found):
        raise ValueError(
            f"{path}: holds 1 as well as 255, of which only one can mean roof; name both with --classes FILE.yaml, "
            "such as 'background: 0', 'roof: 1', 'ignore: 255'"
        )
    return {0: 0, 1: 1, 255: 1}
