"""Cut rasters into crops for training: ``python footprints/crop.py SRC DST --size 384``.

Each raster is divided into contiguous blocks, so that no pixel of validation or test was trained on: a strip along one
side holds the block of validation at one end and that of test at the other, each a tenth of the raster, and the rest is
for training. Every block is covered by crops of its own; the last ones of a row or column are shifted inwards.
In validation and test, what a crop shares with those before it is ignored in its label: no ground counts twice. Crops
are read and written window by window, whatever the size of the raster. They come to lie in DST together, at the end; a
later run from the same files may replace them.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
import rasterio
import tyro
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.command.progress import progress
from common.data.pairs import Pair, require_usable, say_notes
from common.data.splits import PARTS
from common.images.grids import window_grid
from common.images.windows import Window, WindowFile
from common.inference.products import check_disk
from common.labels import IGNORE
from common.outputs import OutputFolder
from footprints.data import find_pairs
from footprints.scene import Frame, LabelReader, is_vector, to_classes

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
ELONGATED = 2.5
"""Rasters this many times longer than wide are divided along their length alone."""
GDAL = {"GDAL_CACHEMAX": 256, "GDAL_TIFF_INTERNAL_MASK": True}
"""What it may keep of the files it reads, MB; masks lie in the crops."""
SCORED = ("val", "test")
"""Parts in which no ground may count twice."""


@dataclass(frozen=True)
class Config:
    """Cut rasters and their labels into crops.

    Examples:
        python footprints/crop.py rasters crops --labels outlines.gpkg
        python footprints/crop.py rasters crops --size 512 --overlap 64 --skip-empty
    """

    src: tyro.conf.Positional[Path]
    """Folder with images/ and labels/ (or with train/images and so on; then its parts are kept)."""
    dst: tyro.conf.Positional[Path]
    """Folder of its own: DST/{train,val,test}/{images,labels}/<stem>_<row>_<col>.tif, from the crop's first pixel."""
    size: int = 384
    """Side of the crops, pixels."""
    overlap: int = 0
    """Pixels that neighboring crops share."""
    labels: Path | None = None
    """Folder of labels, or one vector file of building outlines for all images; default SRC/labels."""
    split: Literal["blocks", "none"] = "blocks"
    """blocks: contiguous blocks of each raster, 0.8 / 0.1 / 0.1; none: everything to DST/{images,labels}."""
    skip_empty: bool = False
    """Leave out crops without a building."""
    skip_nodata: bool = False
    """Leave out crops that hold nothing but nodata."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if self.size < 16:
            raise ValueError(f"--size {self.size} must be at least 16")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"--overlap {self.overlap} is in pixels and must lie in 0...{self.size - 1}, below --size")


def main() -> int:
    """Find rasters, plan crops, write them."""
    config = parse_flags(Config)
    pairs, notes = find_sources(config.src, config.labels)
    say_notes(notes)
    sources, problems = [], []
    for pair in pairs:
        try:
            sources.append(Source(pair))
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    require_usable(len(sources), problems, skip_bad=True)
    plan = plan_crops(sources, config)
    check_disk(config.dst, sum(cut.block.height * cut.block.width * cut.source.bytes_per_pixel for cut in plan))
    folder, inputs = OutputFolder(config.dst), [config.src, *([config.labels] if config.labels else [])]
    names = [f"{name}/" for name in dict.fromkeys(cut.part for cut in plan) if name] or ["images/", "labels/"]
    folder.claim(names, inputs)
    with folder.delivery(inputs, names) as temporary, rasterio.Env(**GDAL):
        problems += write_crops(plan, temporary, config)
    return PARTIAL if problems else 0


def find_sources(src: Path, labels: Path | None) -> tuple[list[Pair], list[str]]:
    """Images with their labels; ids are stems, after ``train/`` and so on where folders say so.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, or nothing is found in it.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"{src} is not a folder; SRC holds images/ and labels/")
    if labels is None:
        return find_pairs(src, flag="SRC")
    if not labels.exists():
        raise FileNotFoundError(f"--labels {labels} does not exist")
    return find_pairs(None, images=src / "images" if (src / "images").is_dir() else src, labels=labels)


class Source:
    """A raster to be cut, with its label.

    Raises:
        ValueError, FileNotFoundError: a file is damaged, or the two do not fit.
    """

    def __init__(self, pair: Pair) -> None:
        part, _, self.stem = pair.id.rpartition("/")
        self.part: str | None = part or None
        self.image = WindowFile(pair.image, "label")
        self.frame = Frame.of(self.image)
        self.label = LabelReader(pair.label, self.frame, pair.image)
        self.label_file = None if is_vector(pair.label) else WindowFile(pair.label, "label")
        dataset, _ = self.image.open()
        self.bytes_per_pixel = dataset.count * np.dtype(dataset.dtypes[0]).itemsize + 1


# Planning


@dataclass(frozen=True)
class Cut:
    """A crop to be cut."""

    source: Source
    part: str
    """'' with ``--split none``."""
    block: Window
    seen: tuple[int, int] = (0, 0)
    """First rows and columns that are ignored: other crops of the part have them."""


def plan_crops(sources: Sequence[Source], config: Config) -> list[Cut]:
    """All crops; in validation and test no ground counts twice."""
    plan: list[Cut] = []
    small = []

    def add(source: Source, part: str, block: Window) -> None:
        for crop, seen in cover(block, config.size, config.overlap):
            plan.append(Cut(source, part, crop, seen if part in SCORED else (0, 0)))

    for source in sources:
        height, width = source.frame.height, source.frame.width
        if source.part is not None or config.split == "none":
            add(source, source.part or "", source.frame.window)
            continue
        blocks = divide(height, width, config.size)
        if blocks is None:
            small.append(source)
        for part, block in blocks or []:
            add(source, part, block)
    for source, part in zip(small, assign(len(small)), strict=True):
        add(source, part, source.frame.window)
    if small:
        say(f"note: {len(small)} rasters are too small to be divided, each goes to one part as a whole")
    return plan


def divide(height: int, width: int, size: int) -> list[tuple[str, Window]] | None:
    """Contiguous blocks of a raster, each at least ``size`` wide and high and none overlapping; None = too small.

    Validation and test are the ends of a strip along the bottom; in elongated rasters they lie at the far end, one
    after the other.
    """
    long = max(height, width) >= ELONGATED * min(height, width)
    if width >= 2 * size and height >= 2 * size and not long:
        return _strip(height, width, size)
    if width >= 3 * size and height >= size and width >= height:
        return _transposed(_stack(width, height, size))
    if height >= 3 * size and width >= size:
        return _stack(height, width, size)
    return None


def _strip(height: int, width: int, size: int) -> list[tuple[str, Window]]:
    area = SHARES["val"] * height * width
    side = max(size, round(area**0.5))
    across = side if width - 2 * side >= size else width // 2  # what is left between them must hold a crop
    down = min(max(size, round(area / across)), height - size)
    top = height - down
    blocks = [("train", Window(0, 0, top, width)), ("val", Window(top, 0, down, across))]
    if width - 2 * across >= size:
        blocks.append(("train", Window(top, across, down, width - 2 * across)))
        return [*blocks, ("test", Window(top, width - across, down, across))]
    return [*blocks, ("test", Window(top, across, down, width - across))]


def _stack(height: int, width: int, size: int) -> list[tuple[str, Window]]:
    piece = max(size, round(SHARES["val"] * height))
    rows = (0, height - 2 * piece, height - piece, height)
    return [(part, Window(a, 0, b - a, width)) for part, a, b in zip(PARTS, rows, rows[1:], strict=False)]


def _transposed(blocks: list[tuple[str, Window]]) -> list[tuple[str, Window]]:
    return [(part, Window(col, row, width, height)) for part, (row, col, height, width) in blocks]


def assign(count: int) -> list[str]:
    """Parts of rasters that are not divided, in their order: the last tenth is test, the tenth before it validation."""
    if count < len(PARTS):
        return ["train"] * count
    test = max(1, round(SHARES["test"] * count))
    val = max(1, round(SHARES["val"] * count))
    return ["train"] * (count - val - test) + ["val"] * val + ["test"] * test


def cover(block: Window, size: int, overlap: int) -> list[tuple[Window, tuple[int, int]]]:
    """Crops that cover a block; those at its far edges are shifted inwards. A small block gives smaller ones.

    Returns:
        Each one with the numbers of its first rows and columns that lie in crops before it.
    """
    row, col, height, width = block
    rows, cols = (_starts(length, size, size - overlap) for length in (height, width))
    pairs = [(a, b) for a in zip(rows, [-size, *rows], strict=False) for b in zip(cols, [-size, *cols], strict=False)]
    return [
        (
            Window(row + r, col + c, min(size, height), min(size, width)),
            (max(0, above + size - r), max(0, left + size - c)),
        )
        for (r, above), (c, left) in pairs
    ]


def _starts(length: int, size: int, step: int) -> list[int]:
    if length <= size:
        return [0]
    starts = list(range(0, length - size + 1, step))
    return starts if starts[-1] + size == length else [*starts, length - size]


# Writing


def write_crops(plan: Sequence[Cut], folder: Path, config: Config) -> list[str]:
    """Write the crops to a folder and say how many; a line for each raster that turned out to be damaged."""
    written: Counter[str] = Counter()
    building: Counter[str] = Counter()
    pixels: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    damaged: dict[Path, str] = {}
    for cut in progress(plan, "cutting", "crop"):
        part, path = cut.part, cut.source.image.path
        if path in damaged:
            continue
        try:
            crop = read_crop(cut)
        except ValueError as error:
            damaged[path] = str(error)
            say(f"failed: {error}")
            continue
        if config.skip_nodata and not crop.valid.any():
            skipped["nodata alone"] += 1
        elif config.skip_empty and not (crop.classes == 1).any():
            skipped["no building"] += 1
        else:
            write_crop(crop, folder / part, f"{cut.source.stem}_{cut.block.row}_{cut.block.col}.tif")
            written[part] += 1
            building[part] += int((crop.classes == 1).sum())
            pixels[part] += crop.classes.size
    for part in sorted(written, key=lambda part: [*PARTS, ""].index(part)):
        say(f"{part or 'crops'}: {written[part]} crops, {building[part] / pixels[part]:.2%} building")
    for reason, count in skipped.items():
        say(f"left out: {count} crops with {reason}")
    if not written:
        raise ValueError(f"no crop was written to {config.dst}; see above")
    return list(damaged.values())


@dataclass(frozen=True)
class Crop:
    """A window of an image and of its label, as they are written."""

    bands: NDArray[Any]
    """(C, H, W), alpha included."""
    valid: NDArray[np.bool_]
    label: NDArray[Any]
    """(1 or 3, H, W)."""
    classes: NDArray[np.uint8]
    """(H, W): 1 building, 0 not, 255 ignored."""
    image_profile: dict[str, Any]
    label_profile: dict[str, Any]


def read_crop(cut: Cut) -> Crop:
    """Read a window of image and label.

    Labels keep their values; of outlines they are 0 and 255. What only a mask, alpha or another crop tells to be
    ignored becomes nodata: then they are 0, 1 and 255.

    Raises:
        ValueError: a file is damaged.
    """
    source, block = cut.source, cut.block
    bands, valid = source.image.read(block)
    if source.label_file is None:
        classes = source.label.read(block)
        label, nodata = classes[None] * np.uint8(255), None
    else:
        label, known = source.label_file.read(block)
        nodata = source.label_file.nodata
        classes = to_classes(label, known, nodata)
        if nodata is None and not known.all():
            label, nodata = classes[None], IGNORE
    if any(cut.seen):
        rows, cols = cut.seen
        classes[:rows] = classes[:, :cols] = IGNORE
        label, nodata = classes[None], IGNORE
    profile = _profile(source, block)
    dataset, meaning = source.image.open()
    kept: dict[str, Any] = {"nodata": source.image.nodata}
    if meaning.alpha:
        alpha = dataset.read(list(meaning.alpha), window=block.spans)
        bands = np.concatenate([bands, alpha])
    if len(bands) == dataset.count and meaning.white_is_zero is None:
        kept["colorinterp"] = [dataset.colorinterp[number - 1] for number in (*meaning.colors, *meaning.alpha)]
    if meaning.colormap is not None and not source.image.is_expanded:
        kept["colormap"] = meaning.colormap
    if meaning.masked and source.image.nodata is None:
        kept["mask"] = valid
    return Crop(bands, valid, label, classes, {**profile, **kept}, {**profile, "nodata": nodata})


def _profile(source: Source, block: Window) -> dict[str, Any]:
    profile: dict[str, Any] = {"driver": "GTiff", "compress": "deflate"}
    if source.frame.transform is not None:
        profile["crs"] = source.frame.crs
        profile["transform"] = window_grid(source.frame.transform, block[0], block[1])
    return profile


def write_crop(crop: Crop, folder: Path, name: str) -> None:
    """Write image and label; the label first, so that an image never stands alone."""
    _write(folder / "labels" / name, crop.label, crop.label_profile)
    _write(folder / "images" / name, crop.bands, crop.image_profile)


def _write(path: Path, bands: NDArray[Any], profile: dict[str, Any]) -> None:
    profile = {**profile, "count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    meanings, colors, mask = (profile.pop(name, None) for name in ("colorinterp", "colormap", "mask"))
    if colors is not None:
        profile["photometric"] = "palette"
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as dataset:
            if meanings is not None:
                dataset.colorinterp = meanings
            if colors is not None:
                dataset.write_colormap(1, colors)
            dataset.write(bands)
            if mask is not None:
                dataset.write_mask(mask)


if __name__ == "__main__":
    run_command(main)
