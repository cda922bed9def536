"""Sparse annotation: a few labeled points per image instead of a dense mask.

Points are drawn once per image, from the run's seed and the image's id alone, so that an image keeps its points
whatever else is in the data. They are saved as a table ``id,x,y,class``; the same table, made by hand, can take the
place of dense labels.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.files import atomic_path
from common.labels import IGNORE
from potsdam_points.labels import CLASSES, ClassMap, plain_name

Sampling = Literal["uniform", "balanced"]
FARTHEST = 2**31
"""Pixels: no image is larger."""
HEADER = ("id", "x", "y", "class")
Points = NDArray[np.int64]
"""(n, 3): column x, row y, class; those of a table have a fourth column, the line."""


def draw_points(classes: ClassMap, count: int, *, seed: int, image_id: str, sampling: Sampling = "uniform") -> ClassMap:
    """Keep ``count`` labeled pixels of a dense label, all others become ignored.

    Args:
        classes: (H, W), 255 = not labeled.
        count: points; 0, or more than there are labeled pixels = all of them.
        seed: of the run.
        image_id: makes the draw the image's own.
        sampling: ``balanced`` shares the points among the classes of the image as evenly as their areas allow.

    Returns:
        (H, W), 255 where there is no point.
    """
    flat = classes.ravel()
    labeled = np.flatnonzero(flat != IGNORE)
    if count == 0 or count >= len(labeled):
        return classes
    rng = np.random.default_rng((seed, zlib.crc32(image_id.encode())))
    if sampling == "uniform":
        chosen = rng.choice(labeled, count, replace=False)
    else:
        groups = [labeled[flat[labeled] == index] for index in np.unique(flat[labeled])]
        quotas = even_quotas([len(group) for group in groups], count)
        chosen = np.concatenate([rng.choice(g, n, replace=False) for g, n in zip(groups, quotas, strict=True)])
    sparse = np.full_like(flat, IGNORE)
    sparse[chosen] = flat[chosen]
    return sparse.reshape(classes.shape)


def at_points(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the labeled pixels: (N, C, H, W) and (N, H, W) -> (1, C, 1, n) and (1, 1, n); n may be 0.

    Every loss over them costs what the points cost, not what the image costs. On an accelerator, which would have to
    be waited for, both are given back as they are.
    """
    if logits.device.type != "cpu":
        return logits, target
    labeled = target != IGNORE
    return logits.movedim(1, -1)[labeled].T[None, :, None, :], target[labeled][None, None, :]


def even_quotas(sizes: list[int], total: int) -> list[int]:
    """Share ``total`` among groups as evenly as ``sizes`` allow; what a small group cannot take goes to the others."""
    quotas, left = [0] * len(sizes), total
    for position, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        quotas[index] = min(sizes[index], left // (len(sizes) - position))
        left -= quotas[index]
    return quotas


def to_points(sparse: ClassMap) -> Points:
    """(H, W) with 255 = nothing -> its points, row by row."""
    rows, columns = np.nonzero(sparse != IGNORE)
    return np.stack([columns, rows, sparse[rows, columns]], axis=1).astype(np.int64)


def from_points(points: Points, height: int, width: int, *, source: str, table: Path | None = None) -> ClassMap:
    """Points -> (H, W), 255 where there is none.

    Args:
        points: those of one image.
        height: of the image, pixels.
        width: of the image, pixels.
        source: the image, for the message.
        table: the file they were read from.

    Raises:
        ValueError: a point lies outside the image; names the table's line.
    """
    x, y, label = points[:, :3].T
    outside = (x < 0) | (y < 0) | (x >= width) | (y >= height)
    if outside.any():
        first = points[outside][0]
        where = source if table is None else f"{table}, line {first[3]}: {source}"
        raise ValueError(
            f"{where}: {int(outside.sum())} point(s) lie outside the image of {width} x {height} pixels, such as "
            f"x {first[0]}, y {first[1]}; x is the column, y the row, both from 0"
        )
    sparse = np.full((height, width), IGNORE, np.uint8)
    sparse[y, x] = label
    return sparse


def write_points(path: Path, points: Iterable[tuple[str, Points]], classes: Sequence[str] = CLASSES) -> None:
    """Write ``id,x,y,class`` with class names, one row per point."""
    quoted = [_quoted(name) for name in classes]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(HEADER) + "\n")
        for name, rows in points:
            image = _quoted(name)
            file.writelines([f"{image},{x},{y},{quoted[label]}\n" for x, y, label in rows.tolist()])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name


def read_points(path: Path, classes: Sequence[str] = CLASSES) -> dict[str, Points]:
    """Read a table ``id,x,y,class``; the class is a name or an index from 0, the id an image's number or stem.

    Args:
        path: the table.
        classes: names by index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a line does not fit; names file, line and value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--points-file {path} does not exist")
    codes = {str(i): i for i in range(len(classes))} | {plain_name(name): i for i, name in enumerate(classes)}
    table: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"--points-file {path}, line {line}: {error}; save it as UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [name for name in HEADER if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"column {', '.join(missing)} is missing; the first line must be id,x,y,class")
        if len(set(reader.fieldnames or [])) < len(reader.fieldnames or []):
            raise ValueError("a column is given twice; the first line must be id,x,y,class")
        for row in reader:
            if None in row:
                raise ValueError(f"there are more values than the {len(reader.fieldnames or [])} columns")
            table[row["id"]].append((*_point(row, codes, classes), reader.line_num))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"--points-file {path}, line {max(reader.line_num, 1)}: {error}") from error
    return {name: np.array(rows, np.int64) for name, rows in table.items()}


def _point(row: Mapping[str, str | None], codes: Mapping[str, int], classes: Sequence[str]) -> tuple[int, int, int]:
    """Column, row and class of a line."""
    try:
        x, y = int(row["x"] or ""), int(row["y"] or "")
        if max(abs(x), abs(y)) > FARTHEST:
            raise ValueError
        return x, y, codes[plain_name(row["class"] or "")]
    except (ValueError, KeyError) as error:
        shown = ", ".join(str(row[name])[:60] for name in HEADER)
        raise ValueError(
            f"{shown} is no point; x and y are whole pixels, the class one of {', '.join(classes)} "
            f"or 0...{len(classes) - 1}"
        ) from error


def find_points(table: Mapping[str, Points], image_id: str) -> Points | None:
    """The points of an image, by its id or by its stem ``Image_<id>``; None = it has none."""
    for name in (image_id, f"Image_{image_id}", image_id.removeprefix("Image_")):
        if name in table:
            return table[name]
    return None


def class_weights(counts: NDArray[np.int64]) -> Tensor:
    """Median frequency / frequency over labeled points (Eigen and Fergus 2015), float32; never labeled = 0."""
    labeled = counts > 0
    weights = np.zeros(len(counts))
    if labeled.any():
        weights[labeled] = np.median(counts[labeled]) / counts[labeled]
    return torch.from_numpy(weights).float()


def save_class_weights(path: Path, weights: Tensor) -> None:
    """Write the weights as a bare tensor, as the original project does."""
    with atomic_path(path) as temporary:
        torch.save(weights, temporary)
