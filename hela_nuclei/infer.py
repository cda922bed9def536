"""Segment frames and stacks: ``python hela_nuclei/infer.py 01 stack.tif`` writes masks, tables, challenge results."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from common.command.cli import run_command
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.files import atomic_path, write_text
from common.images.display import Pixels
from common.images.ranges import range_warning
from common.images.write import Arrays, write_mask, write_picture, write_probability
from common.inference.files import announce, each_input, keep_apart, keep_inputs
from common.inference.flags import PredictConfig, load_predictor
from common.inference.job import working
from common.inference.predictor import Predictor
from common.inference.products import SAFE_STEM, give_names
from common.inference.spool import workplace
from common.inference.stream import warn_of_range
from common.outputs import OutputFolder, relative_source
from hela_nuclei.draw import contact_sheet, outlines
from hela_nuclei.frames import Stack, check_axes, count_pixels, read_stack, scale_frame
from hela_nuclei.polygons import Nucleus, nuclei_of, write_geojson, write_rois
from hela_nuclei.predict import NucleiPredictor, Prediction
from hela_nuclei.results import Member, challenge_results, in_order, sequence_stems, write_result
from hela_nuclei.separate import MIN_AREA
from hela_nuclei.task import TASK
from hela_nuclei.tracking import Linker

BYTES_PER_PIXEL = 7
"""Probabilities take 4, hardly compressible; mask, overlay and labels at most 3."""
SHEET_FRAMES = 9
"""Frames of a stack that its overlay picture shows."""


@dataclass(frozen=True)
class Config(PredictConfig):
    """Segment and separate nuclei in frames, stacks and folders; a folder of numbered frames is a sequence.

    Examples:
        python hela_nuclei/infer.py Fluo-N2DL-HeLa/01
        python hela_nuclei/infer.py stack.tif --axes TYX --tta
    """

    # Input
    scale: float | None = None
    """Resize frames by this factor before the network, such as 0.5 where nuclei are twice as large as in training."""
    input_range: tuple[float, float] | None = None
    """Intensities that mean black and white; default: the training's, as a rule each frame's own extremes."""
    axes: str | None = None
    """What the dimensions of a TIFF mean, such as TYXC; default: its metadata."""
    channel: int | None = None
    """Channel that shows the nuclei; default: green of three, required for two."""
    # Output
    min_area: int = MIN_AREA
    """Leave out nuclei smaller than this, pixels."""
    vector: Literal["none", "geojson", "roi"] = "none"
    """Polygons too, in pixels: GeoJSON, or a zip of ROI files for ImageJ."""
    figure: bool = False
    """Also a picture of frame, probability with a color bar, and mask over the frame (of a stack: its middle frame)."""

    def __post_init__(self) -> None:
        """Refuse values that no input could make right."""
        super().__post_init__()
        check_axes(self.axes)


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    paths = find_images(config.input)
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or Path("outputs") / TASK.name
    stems = sequence_stems(paths)
    names = [name for stem in stems.values() for stack in (False, True) for name in names_of(stem, config, stack=stack)]
    keep_inputs(folder, paths, [name.rstrip("/") for name in names])
    for path in paths:
        keep_apart(workplace(folder, stems[path], path), path)
    sizes = {path: count_pixels(path, config.axes) for path in paths}
    good = announce(sizes, predictor, folder, BYTES_PER_PIXEL)
    outputs = OutputFolder(folder)
    with challenge_results(paths, stems, outputs) as (members, blocked):
        good = {path: pixels for path, pixels in good.items() if path not in blocked}
        job, paths = job_of(predictor, config, outputs, tags, members), in_order(paths, members)
        if config.spread:
            from common.inference.cluster.plans import Inputs, on_workers  # Dask: only where it is asked for

            return on_workers(config, predictor, job, Inputs(paths, stems, good, in_turn=list(members)))
        return each_input(paths, good, lambda path, advance: job.run(path, stems[path], advance), folder)


def names_of(stem: str, config: Config, *, stack: bool) -> list[str]:
    """Results of an input."""
    endings = ["_prob.tif", "_overlay.png", "_nuclei.csv", "_counts.csv"]
    endings += {"none": [], "geojson": [".geojson"], "roi": ["_rois.zip"]}[config.vector]
    endings += ["_figure.png"] if config.figure else []
    return [stem + ending for ending in (*endings, *(["_mask.tif", "_RES/"] if stack else ["_mask.png"]))]


@dataclass(frozen=True)
class Job:
    """What the command does with each of its inputs."""

    config: Config
    predictor: NucleiPredictor
    outputs: OutputFolder
    tags: Mapping[str, str]
    members: Mapping[Path, Member]

    def shipped(self) -> Callable[[Predictor], Job]:
        """What makes this job in another process, of the networks that were loaded there."""
        outputs = OutputFolder(self.outputs.path)
        return partial(job_of, config=self.config, outputs=outputs, tags=self.tags, members={})

    def origin(self, path: Path) -> Path:
        """The user's file that an input is."""
        return path

    def divides(self, path: Path) -> bool:
        """Whether an input can be predicted in ranges of rows."""
        return False

    def read(self, path: Path) -> Stack:
        """An input, with the values that mean black and white."""
        stack = read_stack(path, self.config.axes, self.config.channel)
        ranges = self.predictor.predictor.ranges(self.config.input_range)
        return replace(stack, value_range=ranges.of(stack.frames.dtype))

    def prepare(self, path: Path, advance: Callable[[int], None]) -> dict[str, NDArray[Any]]:
        """What takes long in an input, and needs no other: probabilities and nuclei of its frames, (T, H, W) each."""
        found = []
        for prediction in self.predictions(self.read(path)):
            found.append((prediction.probability, prediction.nuclei()))
            advance(prediction.probability.size)
        probability, labels = zip(*found, strict=True)
        return {"probability": np.stack(probability), "labels": np.stack(labels)}

    def predictions(self, stack: Stack) -> Iterator[Prediction]:
        """Predict the frames of an input."""
        return (self.predictor(scale_frame(frame, stack.value_range)) for frame in stack.frames)

    def finish(self, path: Path, stem: str, prepared: Mapping[str, NDArray[Any]]) -> None:
        """Write the results of an input of what `prepare` gave for it in another process; see `run`."""
        threshold, min_area = self.predictor.threshold, self.predictor.min_area
        pairs = zip(prepared["probability"], prepared["labels"], strict=True)
        known = (Prediction(probability, None, threshold, min_area, labels) for probability, labels in pairs)
        self._write(path, stem, self.read(path), known, lambda _: None)

    def run(self, path: Path, stem: str, advance: Callable[[int], None]) -> None:
        """Predict every frame of an input and write its results: all of them or none."""
        stack = self.read(path)
        self._write(path, stem, stack, self.predictions(stack), advance)

    def _write(
        self, path: Path, stem: str, stack: Stack, predictions: Iterator[Prediction], advance: Callable[[int], None]
    ) -> None:
        self.outputs.check(names_of(stem, self.config, stack=stack.has_time), path)
        warn_of_range(path, known_range_warning(stack))
        self.outputs.path.mkdir(parents=True, exist_ok=True)
        with working(workplace(self.outputs.path, stem, path), path) as here:
            results = self.segment(path, stack, predictions, advance)
            tags = {**self.tags, "source": relative_source(path, self.outputs.path)}
            with self.outputs.delivery(path, workplace=here) as temporary:
                results.write(temporary, stack.has_time, tags)
                self.write_more(temporary, results, stack, tags)
                give_names(temporary, stem)

    def segment(
        self, path: Path, stack: Stack, predictions: Iterator[Prediction], advance: Callable[[int], None]
    ) -> Results:
        """Link the nuclei of a stack's frames; a single frame of a sequence joins that."""
        member = None if stack.has_time else self.members.get(path)
        results, count = Results(), len(stack.frames)
        shown = set(np.linspace(0, count - 1, min(SHEET_FRAMES, count)).astype(int).tolist())
        for index, (frame, prediction) in enumerate(zip(stack.frames, predictions, strict=True)):
            number, labels = index if member is None else member.number, prediction.nuclei()
            if member is None:
                linked = results.linker.update(number, labels)
            else:
                linked = member.sequence.add(path, number, labels, frame.dtype)
            results.add(number, frame, prediction, linked, shown=index in shown)
            if self.config.vector != "none":
                results.nuclei += nuclei_of(number, linked, prediction.probability)
            advance(frame.size)
        return results

    def write_more(self, folder: Path, results: Results, stack: Stack, tags: Mapping[str, str]) -> None:
        """Write polygons and figure into a folder, where they are asked for."""
        base = str(folder / SAFE_STEM)
        if self.config.vector == "geojson":
            write_geojson(Path(f"{base}.geojson"), results.nuclei, tags)
        if self.config.vector == "roi":
            write_rois(Path(f"{base}_rois.zip"), results.nuclei, stack=stack.has_time)
        if self.config.figure:
            from hela_nuclei.figure import write_figure  # matplotlib: only where it is needed

            middle = len(stack.frames) // 2
            maps = results.probabilities[middle], results.masks[middle] > 0
            write_figure(Path(f"{base}_figure.png"), stack.frames[middle], *maps, self.predictor.threshold)


def job_of(
    predictor: Predictor,
    config: Config,
    outputs: OutputFolder,
    tags: Mapping[str, str],
    members: Mapping[Path, Member],
) -> Job:
    """What is done with each input by networks that were loaded."""
    return Job(config, NucleiPredictor(predictor, config.min_area), outputs, tags, members)


@dataclass
class Results:
    """What is found in the frames of an input."""

    linker: Linker = field(default_factory=Linker)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    sheet: list[Pixels] = field(default_factory=list)
    masks: list[NDArray[np.uint8]] = field(default_factory=list)
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    tracked: list[NDArray[np.uint16]] = field(default_factory=list)
    nuclei: list[Nucleus] = field(default_factory=list)

    def add(
        self,
        number: int,
        frame: NDArray[np.generic],
        prediction: Prediction,
        linked: NDArray[np.uint16],
        *,
        shown: bool,
    ) -> None:
        """Add a frame; ``shown`` = the overlay shows it."""
        table = measure(number, linked, frame)
        self.rows += table
        self.counts.append((number, len(table)))
        self.masks.append((prediction.mask * 255).astype(np.uint8))
        self.probabilities.append(prediction.probability)
        self.tracked.append(linked)
        if shown:
            self.sheet.append(outlines(frame, linked))

    def write(self, folder: Path, stack: bool, tags: Mapping[str, str]) -> None:
        """Write all files into a folder."""
        base = str(folder / SAFE_STEM)
        if stack:
            write_pages(Path(f"{base}_mask.tif"), self.masks, tags)
            write_pages(Path(f"{base}_prob.tif"), self.probabilities, tags)
            write_result(Path(f"{base}_RES"), self.tracked, self.linker)
        else:
            maps = Arrays(mask=self.masks[0][None], probability=self.probabilities[0][None])
            write_mask(Path(f"{base}_mask.png"), maps, tags=tags)
            write_probability(Path(f"{base}_prob.tif"), maps, tags=tags)
        write_picture(Path(f"{base}_overlay.png"), contact_sheet(self.sheet), tags)
        write_csv(Path(f"{base}_nuclei.csv"), ("frame", "label", "area", "y", "x", "mean_intensity"), self.rows)
        write_csv(Path(f"{base}_counts.csv"), ("frame", "nuclei"), self.counts)


def known_range_warning(stack: Stack) -> str | None:
    """What to say when a known range hardly fits the values."""
    if stack.value_range is None:
        return None
    return range_warning(stack.frames, np.ones(stack.frames.shape[-2:], bool), stack.value_range)


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


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table atomically."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    run_command(main)
