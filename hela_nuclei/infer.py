"""Segment frames and stacks: ``python hela_nuclei/infer.py 01 stack.tif`` writes masks, overlays, tables and a Cell Tracking Challenge result."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from common.checkpoint import atomic_path, write_text
from common.cli import PARTIAL, run_command, say
from common.config import parse_flags
from common.devices import choose_precision
from common.outputs import check_disk, provenance
from common.plots import Pixels
from common.rasters import find_images, output_stems, range_warning, write_mask, write_probability
from common.runs import newest_checkpoint
from hela_nuclei.draw import contact_sheet, outlines
from hela_nuclei.frames import Stack, read_stack, scale_frame
from hela_nuclei.predict import TASK, TILE, Prediction, Predictor
from hela_nuclei.tracking import Linker, write_tracks

SHEET_FRAMES = 9
"""Frames of a stack that its overlay picture shows."""


@dataclass(frozen=True)
class Config:
    """Segment and separate nuclei in frames, folders of frames and stacks."""

    input: tyro.conf.Positional[tuple[Path, ...]]
    """Images, stacks, or folders of them (not recursive). A folder of numbered frames is one sequence."""
    checkpoint: tuple[Path, ...] = ()
    """Checkpoint(s); several are averaged. Default: the newest run's best."""
    output_dir: Path = Path("outputs") / TASK
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
    """Intensities that mean black and white; default: each frame's own minimum and maximum."""
    min_area: int = 40
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
    if not config.input:
        raise ValueError("no INPUT given; pass images, stacks or folders")
    paths = find_images(config.input)
    stems = output_stems(paths)
    checkpoints = list(config.checkpoint) or [newest_checkpoint(TASK)]
    say(f"checkpoint: {', '.join(map(str, checkpoints))}")
    predictor, card = Predictor.load(
        checkpoints, choose_precision(config.device, config.amp), threshold=config.threshold, tile=config.tile_size, overlap=config.overlap,
        tta="flips" if config.tta else "none", scale=config.scale, min_area=config.min_area,
    )  # fmt: skip
    tags = provenance(checkpoints, predictor.threshold)
    # Probabilities dominate: 4 bytes a pixel, hardly compressible; masks, overlays and labels add about 2.
    check_disk(config.output_dir, 3 * sum(path.stat().st_size for path in paths))

    started, pixels, failed = time.monotonic(), 0, 0
    with challenge_results(paths, config.output_dir) as sequences:
        for path in tqdm(paths, desc=TASK, unit="file", disable=None):
            try:
                stack = read_stack(path, config.axes, config.channel)
                warn_range(path, stack, config.input_range)
                segment(stack, stems[path], predictor, config, tags, sequences.get(path))
                pixels += stack.frames.size
            except (ValueError, OSError) as error:
                say(f"failed: {str(error) if str(path) in str(error) else f'{path}: {error}'}")
                failed += 1
    seconds = time.monotonic() - started
    say(f"{len(paths) - failed} of {len(paths)} files to {config.output_dir} in {seconds:.1f} s ({pixels / 1e6 / max(seconds, 1e-9):.2f} Mpx/s)")
    return PARTIAL if failed else 0


@dataclass
class ResultSequence:
    """A challenge result that grows frame by frame in a temporary folder."""

    folder: Path
    linker: Linker
    number: int | None

    def add(self, number: int, labels: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Link a frame's nuclei to the frames before, write its mask, return it with the tracks' ids."""
        linked = self.linker.update(number, labels)
        tifffile.imwrite(self.folder / f"mask{number:03d}.tif", linked, compression="zlib")
        return linked


@contextmanager
def challenge_results(paths: Sequence[Path], output_dir: Path) -> Iterator[dict[Path, ResultSequence]]:
    """Open ``<folder>_RES`` for every folder of numbered frames among ``paths``; at the end add ``res_track.txt`` and put each in place.

    Yields:
        The open result and the frame number of each path that belongs to one.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".res-", dir=output_dir) as scratch:
        targets: dict[Path, tuple[Path, Linker]] = {}
        members: dict[Path, ResultSequence] = {}
        for parent, numbers in numbered_folders(paths).items():
            folder = Path(scratch) / f"{len(targets)}"
            folder.mkdir()
            linker = Linker()
            target = output_dir / f"{parent.name}_RES"
            targets[folder] = (target if target not in [t for t, _ in targets.values()] else output_dir / f"{parent.parent.name}_{parent.name}_RES", linker)
            members.update({path: ResultSequence(folder, linker, number) for path, number in numbers.items()})
        yield members
        for folder, (target, linker) in targets.items():
            if any(folder.iterdir()):
                write_tracks(folder / "res_track.txt", linker.tracks())
                replace_folder(folder, target)


def replace_folder(folder: Path, target: Path) -> None:
    """Put ``folder`` in the place of an earlier result."""
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def numbered_folders(paths: Sequence[Path]) -> dict[Path, dict[Path, int]]:
    """Frames that are parts of a sequence, by folder: file names that end in a number, all different."""
    folders: dict[Path, dict[Path, int]] = {}
    for path in paths:
        digits = re.search(r"(\d+)$", path.stem)
        if digits:
            folders.setdefault(path.parent.resolve(), {})[path] = int(digits.group(1))
    return {folder: numbers for folder, numbers in folders.items() if len(set(numbers.values())) == len(numbers)}


def warn_range(path: Path, stack: Stack, value_range: tuple[float, float] | None) -> None:
    """Say when a given input range hardly fits the values."""
    if value_range is not None:
        warning = range_warning(stack.frames, np.ones(stack.frames.shape[-2:], bool), value_range)
        if warning:
            say(f"warning: {path}: {warning}")


def segment(stack: Stack, stem: str, predictor: Predictor, config: Config, tags: Mapping[str, str], sequence: ResultSequence | None) -> None:
    """Predict every frame of a stack and write its results under ``stem``."""
    linker, rows, counts, sheet = Linker(), [], [], []
    masks, probabilities, tracked = [], [], []
    shown = set(np.linspace(0, len(stack.frames) - 1, min(SHEET_FRAMES, len(stack.frames))).astype(int).tolist())
    for index, frame in enumerate(stack.frames):
        prediction: Prediction = predictor(scale_frame(frame, config.input_range))
        labels = prediction.nuclei()
        if sequence is not None and not stack.has_time and sequence.number is not None:
            number, linked = sequence.number, sequence.add(sequence.number, labels)
        else:
            number, linked = index, linker.update(index, labels)
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
    """One row per nucleus: frame, label, area (px), centroid (y, x in px) and mean intensity in the file's own units."""
    table = regionprops_table(labels, frame.astype(np.float64), properties=("label", "area", "centroid", "mean_intensity"))
    columns = (table["label"].tolist(), table["area"].astype(int).tolist(), *(table[name].round(2).tolist() for name in ("centroid-0", "centroid-1", "mean_intensity")))
    return [(number, *values) for values in zip(*columns, strict=True)]


def write_pages(path: Path, pages: Sequence[NDArray[np.generic]], tags: Mapping[str, str]) -> None:
    """Write a stack with one page per frame (axes TYX); provenance goes into the image description."""
    stack = np.stack(pages)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, stack, compression="zlib", photometric="minisblack", metadata={"axes": "TYX", **tags}, bigtiff=stack.nbytes > 2**31)


def write_result(target: Path, masks: Sequence[NDArray[np.uint16]], linker: Linker) -> None:
    """Write a stack's challenge result folder."""
    with tempfile.TemporaryDirectory(prefix=".res-", dir=target.parent) as scratch:
        folder = Path(scratch) / "result"
        folder.mkdir()
        for number, mask in enumerate(masks):
            tifffile.imwrite(folder / f"mask{number:03d}.tif", mask, compression="zlib")
        write_tracks(folder / "res_track.txt", linker.tracks())
        replace_folder(folder, target)


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
