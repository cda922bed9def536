"""Frames and masks: the Cell Tracking Challenge layout, the notebook's ``combined_dataset``, or two folders.

A mask holds instance ids (0 = background). Nuclei wholly within ``border`` pixels of the image's edge are not annotated
in the challenge's truth, so background in that band is ignored in training: it may be an unannotated nucleus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from common.data.inputs import OUTPUT_ENDINGS, images_in
from common.data.labeled import size_text, try_each
from common.data.pairs import Facts, value_rows
from common.images.ranges import Range, ValueRanges
from common.images.rasters import read_label
from hela_nuclei.frames import TIFF_SUFFIXES, frame_range, read_stack, scale_frame

SMALLEST_SIDE = 16
"""Pixels: a smaller frame vanishes in the networks' poolings."""
LARGEST_ID = 2**31 - 1
TEST = "combined_dataset_test"
"""Folder beside ``combined_dataset`` whose frames are the test part."""


@dataclass(frozen=True)
class Frame:
    """One frame and its mask on disk."""

    sequence: str
    number: int
    image: Path
    mask: Path

    @property
    def id(self) -> str:
        """Such as ``01/t004``."""
        return f"{self.sequence}/{self.image.stem}"


@dataclass(frozen=True)
class LoadedFrame:
    """A frame in memory: image (H, W) in its own dtype, labels (H, W) int32, and whether the mask file had no ids.

    Its values mean black and white by ``value_range``; None = by its own minimum and maximum.
    """

    frame: Frame
    image: NDArray[np.generic]
    labels: NDArray[np.int32]
    binary: bool = False
    value_range: Range | None = None

    def unit(self) -> NDArray[np.float32]:
        """The image (H, W) as float32 0...1."""
        return scale_frame(self.image, self.value_range)


@dataclass
class Found:
    """What lies under a root: pairs in order, and what has no partner."""

    frames: list[Frame] = field(default_factory=list)
    without_mask: list[Path] = field(default_factory=list)
    without_frame: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A line for each kind of file without a partner."""
        kinds = (("frame(s) without a mask", self.without_mask), ("mask(s) without a frame", self.without_frame))
        return [f"{len(p)} {kind}, left out: {', '.join(map(str, p))}" for kind, p in kinds if p]


def find_frames(
    root: Path | None, *, images: Path | None = None, labels: Path | None = None, truth: str = "ST"
) -> Found:
    """Pair frames with masks by sequence and number.

    Args:
        root: challenge folder (``01/``, ``01_ST/SEG/``...), ``combined_dataset`` or the folder that holds it, and
            perhaps ``combined_dataset_test``, whose frames are the sequence `TEST`.
        images: instead of ``root``: a folder of frames...
        labels: ...and one of masks, joined by stem (``_label`` allowed) or else by number.
        truth: ``ST`` or ``GT``: which of the challenge's masks.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no pair is found; says what was looked for.
    """
    folders = _folders(root, images, labels, truth)
    found = Found()
    for sequence, image_folder, mask_folder in folders:
        masks = images_in(mask_folder) if mask_folder.is_dir() else []
        _pair(sequence, images_in(image_folder, OUTPUT_ENDINGS), masks, found)
    if not found.frames:
        layouts = f"{root}: it holds neither 01/ with 01_{truth}/SEG/ nor images/ with masks/"
        where = ", ".join(f"{i} with {m}" for _, i, m in folders) or layouts
        raise ValueError(f"no frame with a mask found in {where}; see hela_nuclei/README.md for the layout")
    return found


def _folders(root: Path | None, images: Path | None, labels: Path | None, truth: str) -> list[tuple[str, Path, Path]]:
    for name, folder in (("--data-root", root), ("--images", images), ("--labels", labels)):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{name} {folder} is not a folder; check the path")
    if images is not None and labels is not None:
        return [(images.resolve().name, images, labels)]
    assert root is not None
    for folder in (root, root / "combined_dataset"):
        if (folder / "images").is_dir() and (folder / "masks").is_dir():
            test = root / TEST
            found = [("images", folder / "images", folder / "masks"), (TEST, test / "images", test / "masks")]
            return [one for one in found if one[1].is_dir()]
    sequences = sorted(p for p in root.iterdir() if p.is_dir() and re.fullmatch(r"\d{2,}", p.name))
    return [(p.name, p, root / f"{p.name}_{truth}" / "SEG") for p in sequences]


def _number(path: Path) -> int | None:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


def _stem(path: Path) -> str:
    return path.stem.removesuffix("_label")


def _pair(sequence: str, images: Sequence[Path], masks: Sequence[Path], found: Found) -> None:
    """Join by equal stem where one pair has it, else by the last number in the name."""
    by_stem = {_stem(path) for path in masks} & {_stem(path) for path in images}
    key: Callable[[Path], str | int | None] = _stem if by_stem else _number
    table: dict[str | int, Path] = {}
    for mask in masks:
        name = key(mask)
        if name is None or table.setdefault(name, mask) is not mask:
            found.without_frame.append(mask)
    for index, image in enumerate(images):
        name, number = key(image), _number(image)
        partner = table.pop(name, None) if name is not None else None
        if partner is None:
            found.without_mask.append(image)
        else:
            found.frames.append(Frame(sequence, index if number is None else number, image, partner))
    found.without_frame += table.values()


def load_frame(frame: Frame, ranges: ValueRanges | None = None) -> LoadedFrame:
    """Read a frame and its mask.

    Raises:
        ValueError: one of them or both are damaged, the frame is a stack or tiny, or their sizes differ.
    """
    errors, image, labels, binary = [], None, None, False
    try:
        image = _read_image(frame.image)
    except ValueError as error:
        errors.append(str(error))
    try:
        labels, binary = read_labels(frame.mask)
    except ValueError as error:
        errors.append(str(error))
    if image is None or labels is None:
        raise ValueError("; ".join(errors))
    if image.shape != labels.shape:
        sizes = f"{frame.image} is {size_text(image.shape)}, its mask {frame.mask.name} {size_text(labels.shape)}"
        raise ValueError(f"{sizes}; both must be of one size")
    return LoadedFrame(frame, image, labels, binary, ranges.of(image.dtype) if ranges else None)


def _read_image(path: Path) -> NDArray[np.generic]:
    stack = read_stack(path)
    if len(stack.frames) != 1:
        raise ValueError(f"{path}: holds {len(stack.frames)} frames; training takes one frame per file")
    if min(stack.frames[0].shape) < SMALLEST_SIDE:
        raise ValueError(
            f"{path} is {size_text(stack.frames[0].shape)}; the networks need {SMALLEST_SIDE} x {SMALLEST_SIDE}"
        )
    image: NDArray[np.generic] = stack.frames[0]
    return image


def read_labels(path: Path) -> tuple[NDArray[np.int32], bool]:
    """Read an instance mask as (H, W) int32, and whether it was binary.

    A binary mask (0 and 1, or 0 and 255) has no ids: its connected parts become the nuclei.

    Raises:
        ValueError: it is damaged, has several channels, or values that are no ids.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        stack = read_stack(path)
        if len(stack.frames) != 1 or stack.channels != 1:
            shape = f"{len(stack.frames)} pages and {stack.channels} channels"
            raise ValueError(f"{path}: a mask with {shape}; a mask is one page of whole numbers, 0 = background")
        labels: NDArray[Any] = stack.frames[0]
    else:
        labels = read_label(path, colors=False)
        if labels.ndim == 3:
            if (labels != labels[..., :1]).any():
                raise ValueError(f"{path}: a colored mask; a mask is one channel of whole numbers, 0 = background")
            labels = labels[..., 0]
    if labels.dtype.kind not in "ui" and not (labels == np.rint(labels)).all():
        raise ValueError(f"{path}: {labels.dtype} values that are not whole; a mask has a whole number per nucleus")
    low, high = labels.min(), labels.max()
    if low < 0 or high > LARGEST_ID:
        count = int(((labels < 0) | (labels > LARGEST_ID)).sum())
        raise ValueError(f"{path}: {count} pixel(s) with values such as {low if low < 0 else high} are no nucleus ids")
    if high in (1, 255) and np.isin(labels, (0, high)).all():
        return np.asarray(ndimage.label(labels)[0], np.int32), True
    return labels.astype(np.int32), False


def load_frames(frames: Sequence[Frame], ranges: ValueRanges | None = None) -> tuple[list[LoadedFrame], list[str]]:
    """Read all frames; a line for each one that cannot be used."""
    loaded: list[LoadedFrame] = []
    problems = try_each(frames, lambda frame: loaded.append(load_frame(frame, ranges)))
    return loaded, problems


def of_one_size(loaded: Sequence[LoadedFrame]) -> tuple[list[LoadedFrame], list[str]]:
    """The frames of the most frequent size, which can share a batch as they are, and a line for each other one."""
    usual = Counter(item.image.shape for item in loaded).most_common(1)[0][0]
    kept = [item for item in loaded if item.image.shape == usual]
    others = {item.frame.image: item.image.shape for item in loaded if item.image.shape != usual}
    remedy = f"most are {size_text(usual)}; frames of several sizes need crops, such as --crop-size 256"
    return kept, [f"{path} is {size_text(shape)}, {remedy}" for path, shape in others.items()]


def audit(loaded: Sequence[LoadedFrame]) -> Facts:
    """What was found, as (name, value) rows: sizes, types, nuclei, area share; frames unlike the others are named."""
    nuclei = [len(np.unique(f.labels)) - int((f.labels == 0).any()) for f in loaded]
    share = sum(int((f.labels > 0).sum()) for f in loaded) / sum(f.labels.size for f in loaded)
    binary = sum(item.binary for item in loaded)
    values = f"instance ids 0...{max(int(f.labels.max()) for f in loaded)}"
    rows = [
        ("frames with a mask", str(len(loaded))),
        ("size (rows x columns)", _tally_text(_tally(loaded, lambda f: size_text(f.image.shape)))),
        ("type", _tally_text(_tally(loaded, lambda f: str(f.image.dtype)))),
        ("values", described(loaded)),
        ("label values", values + (f"; {binary} binary masks: each connected part is a nucleus" if binary else "")),
        ("nuclei", f"{sum(nuclei)} ({min(nuclei)} to {max(nuclei)} a frame)"),
        ("share of pixels", f"nucleus {share:.1%}, background {1 - share:.1%}"),
    ]
    empty = [f.frame.id for f, count in zip(loaded, nuclei, strict=True) if count == 0]
    if empty:
        rows.append(("without any nucleus", ", ".join(empty)))
    return rows


def described(loaded: Sequence[LoadedFrame]) -> str:
    """Smallest and largest values of the frames, and by which range they are read; says where that hardly fits."""
    ranges = ValueRanges(next((item.value_range for item in loaded if item.value_range is not None), None))
    for item in loaded:
        ranges.see(item.image[None], np.isfinite(item.image))
    if ranges.given is not None:
        return value_rows(ranges)[0][1]
    low, high = (pick(frame_range(item.image)[i] for item in loaded) for i, pick in enumerate((min, max)))
    return f"{low:g} to {high:g}, each frame read from its own minimum to its maximum"


def range_card(loaded: Sequence[LoadedFrame]) -> dict[str, Any]:
    """What a checkpoint says about how frames are read."""
    given = loaded[0].value_range
    if given is None:
        return {"range": "minimum to maximum of each frame"}
    return {"range": list(given), "range_types": sorted({item.image.dtype.name for item in loaded})}


def _tally(loaded: Sequence[LoadedFrame], key: Callable[[LoadedFrame], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for item in loaded:
        groups.setdefault(key(item), []).append(item.frame.id)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _tally_text(groups: Mapping[str, Sequence[str]]) -> str:
    """``700 x 1100 (42), 64 x 64 (1: 01/t003)``: the usual value, and who differs."""
    names, *others = groups.items()
    parts = [f"{names[0]} ({len(names[1])})"]
    parts += [f"{value} ({len(ids)}: {', '.join(ids[:5])}{'...' if len(ids) > 5 else ''})" for value, ids in others]
    return ", ".join(parts)
