"""Images with a class map each: reading them, and what is said of them before a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.command.progress import progress
from common.data.pairs import Facts
from common.images.ranges import ValueRanges, to_pixels, to_unit
from common.images.rasters import read_raster
from common.labels import IGNORE

T = TypeVar("T")


@dataclass(frozen=True)
class LabeledImage:
    """A pair in memory: image (C, H, W) uint8, or float32 0...1; classes (H, W), 255 = ignored."""

    id: str
    image: NDArray[Any]
    classes: NDArray[np.uint8]

    def unit(self) -> NDArray[np.float32]:
        """The image (C, H, W) as float32 0...1."""
        return to_unit(self.image)


class Sample(NamedTuple):
    """A labeled image, or a tile of one, that is read when it is its turn."""

    id: str
    image_id: str
    """Of the file, as the split has it."""
    read: Callable[[], LabeledImage]

    @classmethod
    def held(cls, image: LabeledImage) -> Sample:
        """An image in memory."""
        return cls(image.id, image.id, lambda: image)


def read_labeled(
    name: str,
    image: Path,
    label: Path | None,
    read_classes: Callable[[int, int], NDArray[np.uint8]],
    ranges: ValueRanges | None = None,
    *,
    look: bool = True,
) -> LabeledImage:
    """Read an image and its classes; pixels without meaning (alpha, nodata) are ignored.

    Args:
        name: its id.
        image: its file.
        label: the file of the classes, for messages.
        read_classes: gives the classes of an image of this height and width.
        ranges: what the image's values mean; None = their number type's range.
        look: take note of the image's values in ``ranges``.

    Raises:
        ValueError, FileNotFoundError: a file is damaged, the sizes differ, or the label has unknown values.
    """
    raster, ranges = read_raster(image), ranges or ValueRanges()
    classes = read_classes(*raster.valid.shape)
    if classes.shape != raster.valid.shape:
        raise ValueError(
            f"{label}: is {size_text(classes.shape)} pixels, its image {image} {size_text(raster.valid.shape)}; "
            "both must be of one size: export the label again on the image's grid"
        )
    if look:
        ranges.see(raster.data[:3], raster.valid)
    pixels = to_pixels(raster.data, raster.valid, 3, ranges.of(raster.data.dtype))
    return LabeledImage(name, pixels, np.where(raster.valid, classes, np.uint8(IGNORE)))


def try_each(items: Iterable[T], work: Callable[[T], Any]) -> list[str]:
    """Work on one file after another; a line for each one that cannot be used."""
    problems = []
    for item in progress(items, "reading", "file"):
        try:
            work(item)
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    return problems


def size_text(shape: Sequence[int]) -> str:
    """``300 x 400``."""
    return " x ".join(map(str, shape))


def tally(values: Iterable[object], most: int = 5) -> str:
    """The most frequent values with their counts: ``300 x 300 (12), 150 x 300 (1)``."""
    return ", ".join(f"{value} ({count})" for value, count in Counter(map(str, values)).most_common(most))


def size_row(shapes: Iterable[Sequence[int]]) -> tuple[str, str]:
    """How large the images are, as a (name, value) row."""
    return "size (rows x columns)", tally(map(size_text, shapes))


def class_rows(names: Sequence[str], counts: NDArray[np.int64], pixels: int, values: Sequence[str] = ()) -> Facts:
    """How much each class has, as (name, value) rows.

    Args:
        names: of the classes.
        counts: (images, classes) pixels.
        pixels: of all images.
        values: of the classes in the labels, where they are worth telling.
    """
    sums, known = counts.sum(axis=0), int(counts.sum())
    told = [f"{name} ({value})" for name, value in zip(names, values, strict=True)] if values else names
    shares = [f"{name} {n} ({n / pixels:.2%})" for name, n in zip(told, sums.tolist(), strict=True)]
    holding = (counts > 0).sum(axis=0).tolist()
    return [
        ("label pixels", ", ".join(shares)),
        ("not labeled", f"{pixels - known} ({1 - known / pixels:.2%})"),
        ("images that show", ", ".join(f"{name} {n}" for name, n in zip(names, holding, strict=True))),
    ]


def require_two_classes(names: Sequence[str], counts: Sequence[int], where: str, hint: str = "") -> None:
    """Make sure that there is something to tell apart.

    Args:
        names: of the two classes.
        counts: their pixels.
        where: what holds them, such as ``the labels of all 12 images``.
        hint: what counts as which class.

    Raises:
        ValueError: there is one class alone, or none.
    """
    if not all(counts):
        only = names[0] if counts[0] else names[1] if counts[1] else "ignored pixels"
        raise ValueError(f"{where} hold nothing but {only}: there is nothing to learn{hint and f'; {hint}'}")
