"""Segment frames and stacks: ``python hela_nuclei/infer.py 01 stack.tif`` writes masks, tables, challenge results."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tifffile
import tyro
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import regionprops_table
from tqdm import tqdm

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.inputs import find_images, output_stems
from common.files import atomic_path, write_text
from common.images.display import Pixels
from common.images.ranges import ValueRanges, range_warning
from common.images.write import write_mask, write_probability
from common.inference.outputs import check_disk, provenance
from common.networks.precision import choose_precision
from hela_nuclei.draw import contact_sheet, outlines
from hela_nuclei.frames import Stack, check_axes, count_pixels, read_stack, scale_frame
from hela_nuclei.predict import TILE, Prediction, Predictor
from hela_nuclei.results import Member, challenge_results, check_replaceable, in_order, write_result
from hela_nuclei.separate import MIN_AREA
from hela_nuclei.task import TASK
from hela_nuclei.tracking import Linker

ENDINGS = ("_mask.png", "_mask.tif", "_prob.tif", "_overlay.png", "_nuclei.csv", "_counts.csv")
BYTES_PER_PIXEL = 7
"""Probabilities take 4, hardly compressible; mask, overlay and labels at most 3."""
SHEET_FRAMES = 9
"""Frames of a stack that its overlay picture shows."""


@dataclass(frozen=True)
class Config:
    """Segment and separate nuclei in frames, folders of frames and stacks."""

    input: tyro.conf.Positional[tuple[Path, ...]]
    """Images, stacks, or folders of them (not recursive). A folder of numbered frames is one sequence."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s); several are averaged. Default: the newest run's best."""
    output_dir: Path = Path("outputs") / TASK.name
    """Where results go."""
    tile_size: int = TILE
    """Side of the tiles in which larger frames are predicted, pixels."""
    overlap: float = 0.25
    """Share of a tile that the next one covers again."""
    tta: bool = False
    """Average over flips: slower, a little better."""
    threshold: float | None = None
    """Nucleus where P is at least this; default: the checkpoint's."""
    scale: float | None = None
    """Resize frames by this factor before the network, such as 0.5 where nuclei are twice as large as in training."""
    input_range: tuple[float, float] | None = None
    """Intensities that mean black and white; default: the training's, as a rule each frame's own extremes."""
    min_area: int = MIN_AREA
    """Smaller objects are dropped, pixels."""
    axes: str | None = None
    """What the dimensions of a TIFF mean, such as TYXC; default: its metadata."""
    channel: int | None = None
    """Channel that shows the nuclei; default: green of three, required for two."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="Where to compute.")] = "auto"
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], tyro.conf.arg(help="Mixed precision.")] = "auto"


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    check(config)
    paths = find_images(config.input)
    stems = output_stems(paths)
    checkpoints = TASK.checkpoints(config.checkpoint)
    predictor, card = Predictor.load(
        checkpoints, choose_precision(config.device, config.amp), threshold=config.threshold, tile=config.tile_size,
        overlap=config.overlap, tta="flips" if config.tta else "none", scale=config.scale, min_area=config.min_area,
    )  # fmt: skip
    ranges = ValueRanges(config.input_range, card.normalization)
    tags = provenance(checkpoints, predictor.threshold)
    keep_inputs(paths, stems, config.output_dir)
    sizes = announce(paths, config, predictor)

    started, failed, done = time.monotonic(), 0, 0
    bar = tqdm(total=sum(sizes.values()) / 1e6, desc=TASK.name, unit="Mpx", disable=None)
    with challenge_results(paths, stems, config.output_dir) as members, bar:
        for path in in_order(paths, members):
            try:
                stack = read_stack(path, config.axes, config.channel)
                stack = replace(stack, value_range=ranges.of(stack.frames.dtype))
                warn_range(path, stack)
                segment(path, stack, stems[path], predictor, config, tags, members.get(path))
                done += stack.frames.size
            except (ValueError, OSError) as error:
                say(f"failed: {error if str(path) in str(error) else f'{path}: {error}'}")
                failed += 1
            bar.update(sizes[path] / 1e6)
    seconds = max(time.monotonic() - started, 1e-9)
    speed = f"{seconds:.1f} s ({done / 1e6 / seconds:.2f} Mpx/s)"
    say(f"{len(paths) - failed} of {len(paths)} files to {config.output_dir} in {speed}")
    return PARTIAL if failed else 0


def check(config: Config) -> None:
    """Refuse flags that no input could make right.

    Raises:
        ValueError: names the flag and its value.
    """
    if not config.input:
        raise ValueError("no INPUT given; pass images, stacks or folders")
    check_axes(config.axes)
    if config.channel is not None and config.channel < 0:
        raise ValueError(f"--channel {config.channel} must not be negative")
    if config.min_area < 0:
        raise ValueError(f"--min-area {config.min_area} must not be negative")
    if config.input_range is not None and not config.input_range[0] < config.input_range[1]:
        raise ValueError(
            f"--input-range needs two numbers LO < HI, got {config.input_range[0]} {config.input_range[1]}"
        )
    if config.output_dir.exists() and not config.output_dir.is_dir():
        raise ValueError(f"--output-dir {config.output_dir} is a file; give a folder")


def keep_inputs(paths: Sequence[Path], stems: Mapping[Path, str], folder: Path) -> None:
    """Make sure that no result would take the place of an input.

    Raises:
        ValueError: one would; names it.
    """
    inputs = {path.resolve() for path in paths}
    for stem in stems.values():
        for ending in ENDINGS:
            if (folder / f"{stem}{ending}").resolve() in inputs:
                raise ValueError(f"{folder / f'{stem}{ending}'} is an input; choose another --output-dir")


def announce(paths: Sequence[Path], config: Config, predictor: Predictor) -> dict[Path, int]:
    """Print what is ahead: pixels, minutes, disk. Returns the pixels of each file as far as its header tells.

    Raises:
        ValueError: the disk is too full.
    """
    sizes = {path: count_pixels(path, config.axes) for path in paths}
    pixels, blank = sum(sizes.values()), np.zeros((384, 384), np.float32)
    predictor(blank)  # sets up kernels
    started = time.monotonic()
    predictor(blank)
    minutes = (time.monotonic() - started) / blank.size * pixels / 60
    needed = BYTES_PER_PIXEL * pixels
    say(
        f"{len(paths)} files, {pixels / 1e6:.1f} Mpx, about {minutes:.1f} min, {needed / 1e9:.2f} GB of results at most"
    )
    check_disk(config.output_dir, needed)
    return sizes


def warn_range(path: Path, stack: Stack) -> None:
    """Say when a known range hardly fits the values."""
    if stack.value_range is not None:
        warning = range_warning(stack.frames, np.ones(stack.frames.shape[-2:], bool), stack.value_range)
        if warning:
            say(f"warning: {path}: {warning}")


def segment(
    path: Path, stack: Stack, stem: str, predictor: Predictor, config: Config, tags: Mapping[str, str],
    member: Member | None,
) -> None:  # fmt: skip
    """Predict every frame of a stack and write its results under ``stem``."""
    linker, rows, counts, sheet = Linker(), [], [], []
    masks, probabilities, tracked = [], [], []
    shown = set(np.linspace(0, len(stack.frames) - 1, min(SHEET_FRAMES, len(stack.frames))).astype(int).tolist())
    for index, frame in enumerate(stack.frames):
        prediction: Prediction = predictor(scale_frame(frame, stack.value_range))
        number, labels = index, prediction.nuclei()
        if member is not None and not stack.has_time:
            number = member.number
            linked = member.sequence.add(path, number, labels, frame.dtype)
        else:
            linked = linker.update(number, labels)
        table = measure(number, linked, frame)
        rows += table
        counts.append((number, len(table)))
        masks.append((prediction.mask * 255).astype(np.uint8))
        probabilities.append(prediction.probability)
        tracked.append(linked)
        if index in shown:
            sheet.append(outlines(frame, linked))
    folder = config.output_dir
    if stack.has_time:
        check_replaceable(folder / f"{stem}_RES")
        write_pages(folder / f"{stem}_mask.tif", masks, tags)
        write_pages(folder / f"{stem}_prob.tif", probabilities, tags)
        write_result(folder / f"{stem}_RES", tracked, linker)
    else:
        write_mask(folder / f"{stem}_mask.png", masks[0], palette=None, like=None, tags=dict(tags))
        write_probability(folder / f"{stem}_prob.tif", probabilities[0][None], like=None, tags=dict(tags))
    write_picture(folder / f"{stem}_overlay.png", contact_sheet(sheet))
    write_csv(folder / f"{stem}_nuclei.csv", ("frame", "label", "area", "y", "x", "mean_intensity"), rows)
    write_csv(folder / f"{stem}_counts.csv", ("frame", "nuclei"), counts)


def measure(number: int, labels: NDArray[np.uint16], frame: NDArray[np.generic]) -> list[tuple[float, ...]]:
    """One row per nucleus: frame, label, area (px), centroid (y, x in px), mean intensity in the file's own units."""
    table = regionprops_table(
        labels, frame.astype(np.float64), properties=("label", "area", "centroid", "mean_intensity")
    )
    columns = (
        table["label"].tolist(),
        table["area"].astype(int).tolist(),
        *(table[name].round(2).tolist() for name in ("centroid-0", "centroid-1", "mean_intensity")),
    )
    return [(number, *values) for values in zip(*columns, strict=True)]


def write_pages(path: Path, pages: Sequence[NDArray[np.generic]], tags: Mapping[str, str]) -> None:
    """Write a stack with one page per frame (axes TYX); provenance goes into the image description."""
    stack = np.stack(pages)
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            stack,
            compression="zlib",
            photometric="minisblack",
            metadata={"axes": "TYX", **tags},
            bigtiff=stack.nbytes > 2**31,
        )


def write_picture(path: Path, picture: Pixels) -> None:
    """Write an RGB picture atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table atomically."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    run_command(main)
