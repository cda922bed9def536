"""Frames and masks: the Cell Tracking Challenge layout, the notebook's ``combined_dataset``, or two folders.

A mask holds instance ids (0 = background). Nuclei wholly within ``border`` pixels of the image's edge are not annotated in the challenge's
truth, so background in that band is ignored in training: it may be an unannotated nucleus.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from common.cli import say
from common.losses import IGNORE
from common.rasters import IMAGE_EXTENSIONS
from common.sampling import Key
from hela_nuclei.frames import read_stack, scale_frame
from hela_nuclei.separate import distance_map


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
    """A frame in memory: image (H, W) in its own dtype, labels (H, W) int32."""

    frame: Frame
    image: NDArray[np.generic]
    labels: NDArray[np.int32]


def find_frames(root: Path | None, *, images: Path | None = None, labels: Path | None = None, truth: str = "ST") -> tuple[list[Frame], list[str]]:
    """Pair frames with masks by sequence and number.

    Args:
        root: challenge folder (``01/``, ``01_ST/SEG/``...), ``combined_dataset`` or the folder that holds it.
        images: instead of ``root``: a folder of frames...
        labels: ...and one of masks, joined by stem (``_label`` allowed) or else by number.
        truth: ``ST`` or ``GT``: which of the challenge's masks.

    Returns:
        The pairs in order, and a line for each frame without mask and mask without frame.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no pair is found; says what was looked for.
    """
    folders = _folders(root, images, labels, truth)
    frames: list[Frame] = []
    unpaired: list[str] = []
    for sequence, image_folder, mask_folder in folders:
        pairs, notes = _pair(sequence, _files(image_folder), _files(mask_folder))
        frames += pairs
        unpaired += notes
    if not frames:
        where = ", ".join(f"{i} with {m}" for _, i, m in folders) or f"{root}: it holds neither 01/ with 01_{truth}/SEG/ nor images/ with masks/"
        raise ValueError(f"no frame with a mask found in {where}; see hela_nuclei/README.md for the layout")
    return frames, unpaired


def _folders(root: Path | None, images: Path | None, labels: Path | None, truth: str) -> list[tuple[str, Path, Path]]:
    for name, folder in (("--data-root", root), ("--images", images), ("--labels", labels)):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{name} {folder} is not a folder")
    if images is not None and labels is not None:
        return [(images.name, images, labels)]
    assert root is not None
    for folder in (root, root / "combined_dataset"):
        if (folder / "images").is_dir() and (folder / "masks").is_dir():
            return [("images", folder / "images", folder / "masks")]
    sequences = sorted(p for p in root.iterdir() if p.is_dir() and re.fullmatch(r"\d{2,}", p.name))
    return [(p.name, p, root / f"{p.name}_{truth}" / "SEG") for p in sequences if (root / f"{p.name}_{truth}" / "SEG").is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS and not p.name.startswith("."))


def _number(path: Path) -> int | None:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


def _pair(sequence: str, images: Sequence[Path], masks: Sequence[Path]) -> tuple[list[Frame], list[str]]:
    """Join by equal stem where one pair has it, else by the last number in the name."""
    by_stem = {path.stem.removesuffix("_label"): path for path in masks}
    key: Callable[[Path], Any] = _number
    if any(path.stem in by_stem for path in images):
        key = lambda path: path.stem.removesuffix("_label")  # noqa: E731
    table = {key(path): path for path in masks if key(path) is not None}
    frames, notes = [], []
    for index, image in enumerate(images):
        mask = table.pop(key(image), None) if key(image) is not None else None
        if mask is None:
            notes.append(f"{image}: no mask, left out")
        else:
            number = _number(image)
            frames.append(Frame(sequence, index if number is None else number, image, mask))
    return frames, notes + [f"{mask}: no frame, left out" for mask in table.values()]


def load_frame(frame: Frame) -> LoadedFrame:
    """Read a frame and its mask.

    Raises:
        ValueError: one of them is damaged, is a stack, or their sizes differ.
    """
    stack = read_stack(frame.image)
    if len(stack.frames) != 1:
        raise ValueError(f"{frame.image}: holds {len(stack.frames)} frames; training takes one frame per file")
    labels = read_labels(frame.mask)
    if stack.frames[0].shape != labels.shape:
        raise ValueError(f"{frame.image} is {_size(stack.frames[0])}, its mask {frame.mask.name} {_size(labels)}; both must be of one size")
    return LoadedFrame(frame, stack.frames[0], labels)


def read_labels(path: Path) -> NDArray[np.int32]:
    """Read an instance mask, (H, W) int32.

    Raises:
        ValueError: it is damaged, has several channels, or values that are no ids.
    """
    stack = read_stack(path)
    labels = stack.frames[0]
    if len(stack.frames) != 1 or labels.dtype.kind not in "ui" or labels.min() < 0:
        raise ValueError(f"{path}: {labels.dtype} mask of {len(stack.frames)} pages; a mask is one page of whole numbers, 0 = background")
    return labels.astype(np.int32)


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def load_frames(frames: Sequence[Frame]) -> tuple[list[LoadedFrame], list[str]]:
    """Read all frames; a line for each one that cannot be used."""
    loaded, problems = [], []
    for frame in frames:
        try:
            loaded.append(load_frame(frame))
        except ValueError as error:
            problems.append(str(error))
    return loaded, problems


def audit(loaded: Sequence[LoadedFrame]) -> list[tuple[str, str]]:
    """What was found, as (name, value) rows: sizes, types, nuclei, area share; frames that differ from the others are named."""
    sizes = _tally(loaded, lambda f: _size(f.image))
    kinds = _tally(loaded, lambda f: str(f.image.dtype))
    nuclei = [len(np.unique(f.labels)) - int((f.labels == 0).any()) for f in loaded]
    share = sum(int((f.labels > 0).sum()) for f in loaded) / sum(f.labels.size for f in loaded)
    rows = [
        ("frames with a mask", str(len(loaded))),
        ("size (rows x columns)", _tally_text(sizes)),
        ("type", _tally_text(kinds)),
        ("label values", f"instance ids 0...{max(int(f.labels.max()) for f in loaded)}"),
        ("nuclei", f"{sum(nuclei)} ({min(nuclei)} to {max(nuclei)} a frame)"),
        ("share of pixels", f"nucleus {share:.1%}, background {1 - share:.1%}"),
    ]
    empty = [f.frame.id for f, count in zip(loaded, nuclei, strict=True) if count == 0]
    if empty:
        rows.append(("without any nucleus", ", ".join(empty)))
    return rows


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


def require_usable(problems: Sequence[str], *, skip_bad: bool) -> None:
    """Name every bad file; stop unless ``skip_bad``.

    Raises:
        ValueError: there are bad files and they are not to be skipped.
    """
    for problem in problems:
        say(f"{'skipped' if skip_bad else 'bad'}: {problem}")
    if problems and not skip_bad:
        raise ValueError(f"{len(problems)} bad file(s), listed above; repair or remove them, or pass --skip-bad to go on without them")


def semantic_target(labels: NDArray[np.int32], border: int) -> NDArray[np.uint8]:
    """Instance ids -> 1 = nucleus, 0 = background, 255 = background within ``border`` px of the edge."""
    target = (labels > 0).astype(np.uint8)
    if border > 0:
        band = np.ones(labels.shape, bool)
        band[border:-border, border:-border] = False
        target[band & (labels == 0)] = IGNORE
    return target


class FrameCrops:
    """Training samples: random crops (or whole frames) with flips, quarter turns and changes of brightness and noise.

    Args:
        loaded: the frames.
        crop: side of the square crops in pixels; 0 = whole frames, which must then be of one size.
        length: samples per epoch; 0 = one per frame.
        border: band in which background is ignored, pixels.
        augment: off = crops without changes.
    """

    def __init__(self, loaded: Sequence[LoadedFrame], *, crop: int, length: int = 0, border: int = 25, augment: bool = True) -> None:
        shapes = {item.image.shape for item in loaded}
        if not crop and len(shapes) > 1:
            raise ValueError(f"whole frames of {len(shapes)} sizes cannot share a batch; set --crop-size, such as --crop-size 256")
        self.crop, self.length, self.augment = crop, length or len(loaded), augment
        self.frames = [(item.frame.id, scale_frame(item.image), semantic_target(item.labels, border), distance_map(item.labels)) for item in loaded]

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides crop and augmentation."""
        index, seed = key
        rng = np.random.default_rng(seed)
        name, *maps = self.frames[index % len(self.frames)]
        image, target, distance = (self._cut(m, fill, *self._corner(maps[0].shape, seed)) for m, fill in zip(maps, (0, IGNORE, 0), strict=True))
        if self.augment:
            turns = int(rng.integers(4)) if image.shape[0] == image.shape[1] else 2 * int(rng.integers(2))
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            image, target, distance = (np.rot90(m, turns)[:, flip] for m in (image, target, distance))
            image = image * np.exp(rng.normal(0, 0.25)) + rng.normal(0, 0.02)
            image = image + rng.normal(0, rng.uniform(0, 0.005), image.shape)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image, np.float32))[None],
            "target": torch.from_numpy(np.ascontiguousarray(target).astype(np.int64)),
            "distance": torch.from_numpy(np.ascontiguousarray(distance)),
            "id": name,
        }

    def _corner(self, shape: tuple[int, ...], seed: int) -> tuple[int, int]:
        if not self.crop:
            return 0, 0
        rng = np.random.default_rng((seed, 1))
        return int(rng.integers(max(shape[0] - self.crop, 0) + 1)), int(rng.integers(max(shape[1] - self.crop, 0) + 1))

    def _cut(self, array: NDArray[Any], fill: int, row: int, column: int) -> NDArray[Any]:
        """The crop at (row, column), filled up where the frame is smaller."""
        if not self.crop:
            return array
        part = array[row : row + self.crop, column : column + self.crop]
        missing = [(0, self.crop - size) for size in part.shape]
        return np.pad(part, missing, constant_values=fill) if any(m for _, m in missing) else part


class WholeFrames:
    """Validation samples: whole frames, unchanged; ``labels`` are the instance ids. ``border`` as in training (0 = every pixel counts)."""

    def __init__(self, loaded: Sequence[LoadedFrame], *, border: int = 0) -> None:
        self.loaded, self.border = loaded, border

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.loaded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One frame."""
        item = self.loaded[index]
        return {
            "image": torch.from_numpy(scale_frame(item.image))[None],
            "target": torch.from_numpy(semantic_target(item.labels, self.border).astype(np.int64)),
            "distance": torch.from_numpy(distance_map(item.labels)),
            "labels": torch.from_numpy(item.labels),
            "id": item.frame.id,
        }


def write_labels(path: Path, labels: NDArray[np.integer]) -> None:
    """Write a uint16 label image."""
    tifffile.imwrite(path, labels.astype(np.uint16), compression="zlib")
