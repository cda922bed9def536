"""Inference of color images and rasters of any size: from files to masks, one input after another.

Pictures are predicted in memory. What is georeferenced or large is streamed (`common.inference.stream`); both ways
give the same masks.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.command.cli import PARTIAL, say
from common.command.progress import Work
from common.data.inputs import output_stems
from common.files import OutputFolder, Workplace, relative_source
from common.images.gdal import pixel_count, place_note
from common.images.ranges import Range, range_warning, to_channels
from common.images.rasters import Raster, read_raster
from common.images.write import Arrays
from common.inference.flags import InferConfig
from common.inference.predictor import Predictor, confidence_of
from common.inference.products import (
    Prediction,
    Products,
    check_disk,
    free_bytes,
    write_products,
)
from common.inference.resolution import fitted
from common.inference.spool import workplace
from common.inference.stream import is_placed, is_streamed, layers_of, stream_file, warn_of_range
from common.labels import NODATA
from common.vectors.write import SIDECARS

LONG_RUN = 60.0
"""Seconds from which on an estimate is worth a line."""


# In memory


class InMemory(Arrays):
    """A predicted picture.

    Args:
        raster: the input.
        image: (C, H, W) in 0...1, as the network saw it.
        probability: what the network(s) gave.
        mask: (H, W) class indices.
    """

    streamed = False

    def __init__(
        self, raster: Raster, image: NDArray[np.float32], probability: NDArray[np.float32], mask: NDArray[np.uint8]
    ) -> None:
        self.place = (raster.crs, raster.transform)
        super().__init__(
            mask=np.where(raster.valid, mask, np.uint8(NODATA))[None],
            confidence=confidence_of(probability, mask)[None],
            probability=np.where(raster.valid, probability, np.float32(np.nan)),
            picture=np.round(image[:3] * 255).astype(np.uint8),
        )


def predict_file(path: Path, predictor: Predictor, input_range: Range | None = None) -> InMemory:
    """Read and predict one image in memory.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged or no single picture.
    """
    raster = read_raster(path)
    value_range = predictor.ranges(input_range).of(raster.data.dtype)
    warn_of_range(path, range_warning(raster.data, raster.valid, value_range))
    image = to_channels(raster.data, raster.valid, predictor.channels, value_range)
    probability = predictor(image)
    return InMemory(raster, image, probability, predictor.classify(probability))


# Many inputs


@dataclass(frozen=True)
class Job:
    """What one command does with each of its inputs."""

    predictor: Predictor
    outputs: OutputFolder
    products: Products
    input_range: Range | None = None
    gsd: float = 0.0
    """Metres per pixel of inputs without a coordinate system; 0 = unknown."""
    origins: Mapping[Path, Path] = field(default_factory=dict)
    """The user's files, where inputs are temporary parts of them."""

    def origin(self, path: Path) -> Path:
        """The user's file that an input is, or is a part of."""
        return self.origins.get(path, path)

    def run(self, path: Path, stem: str, progress: Callable[[int], None]) -> None:
        """Predict one input of any size and write its products: all of them or none.

        Raises:
            ValueError: another process works on the same input.
            Exception: whatever is wrong with the input; nothing is left of it then.
        """
        origin = self.origin(path)
        if (note := place_note(path)) is not None:
            say(f"note: {note}")
        tags = {**self.products.tags, "source": relative_source(origin, self.outputs.path)}
        products, predictor = replace(self.products, tags=tags), fitted(self.predictor, path, self.gsd)
        self.outputs.check(products.names(stem, is_placed(path)), origin)
        self.outputs.path.mkdir(parents=True, exist_ok=True)
        with working(workplace(self.outputs.path, stem, origin), origin) as here:
            if is_streamed(path):
                with stream_file(
                    path, predictor, here.path, products, input_range=self.input_range, progress=progress
                ) as rows:
                    self._deliver(rows, path, stem, products, here)
            else:
                self._deliver(predict_file(path, predictor, self.input_range), path, stem, products, here)

    def _deliver(self, rows: Prediction, path: Path, stem: str, products: Products, here: Workplace) -> None:
        with self.outputs.delivery(self.origin(path), workplace=here) as temporary:
            write_products(rows, path, temporary, stem, self.predictor.card, products)
            made = {file.name for file in temporary.iterdir()}
        if products.vector == "shp":  # an earlier run's polygons may have needed more files
            more = rf"{re.escape(stem)}_\d+\.({'|'.join(('shp', *SIDECARS['shp']))})"
            self.outputs.discard(more, self.origin(path), made)


@contextmanager
def working(place: Workplace, source: Path) -> Iterator[Workplace]:
    """Hold a workplace; it is removed at the end and after an error, unless rows lie there that are still of use.

    They are when the run was stopped, or the disk is full.

    Raises:
        ValueError: another process holds it.
    """
    if not place.claim():
        raise ValueError(busy(place, source))
    kept = place.path / Workplace.KEPT
    try:
        yield place
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if kept.exists() and (full or not isinstance(error, Exception)):
            place.release()
            if full:
                say(f"note: {source}: the finished rows stay in {place.path}; the next run goes on there")
        else:
            place.remove()
        raise
    place.remove()


def busy(place: Workplace, source: Path) -> str:
    """What to say of a workplace that another process holds."""
    where = place.path.parent
    return f"{source}: {place.owner()} works on it in {where}; wait for that to end, or choose another --output-dir"


def infer_inputs(
    config: InferConfig,
    paths: Sequence[Path],
    predictor: Predictor,
    folder: Path,
    products: Products,
    *,
    origins: Mapping[Path, Path] | None = None,
) -> int:
    """Predict every input and write its products; bad ones are named and left out.

    Args:
        config: the command's flags.
        paths: inputs.
        predictor: the network(s).
        folder: where results go.
        products: what is written.
        origins: the user's files, where inputs are temporary parts of them.

    Returns:
        The command's exit code.

    Raises:
        ValueError: a result would replace an input, another process works on one, or the disk has too little space;
            nothing is written then.
    """
    job = Job(predictor, OutputFolder(folder), products, config.input_range, config.gsd, origins or {})
    stems = output_stems(paths)
    names = {path: products.names(stems[path], is_placed(path)) for path in paths}
    keep_inputs(folder, [job.origin(path) for path in paths], [name for some in names.values() for name in some])
    for path in paths:
        keep_apart(workplace(folder, stems[path], job.origin(path)), job.origin(path))
    sizes = {path: pixel_count(path) for path in paths}
    good = announce(sizes, predictor, folder, disk_per_pixel(predictor, products))
    job.outputs.sweep()
    return each_input(paths, good, lambda path, progress: job.run(path, stems[path], progress), folder)


def keep_inputs(folder: Path, inputs: Sequence[Path], names: Sequence[str]) -> None:
    """Make sure that no result would take the place of an input.

    Raises:
        ValueError: one would; names it.
    """
    taken = {path.resolve() for path in inputs}
    for name in names:
        if (folder / name).resolve() in taken:
            raise ValueError(f"{folder / name} is an input, a result would replace it; choose another --output-dir")


def keep_apart(place: Workplace, source: Path) -> None:
    """Make sure that no other process works on an input.

    Raises:
        ValueError: one does; says which.
    """
    if place.path.is_dir():
        if not place.claim():
            raise ValueError(busy(place, source))
        place.release()


def each_input(
    paths: Sequence[Path], sizes: Mapping[Path, int], work: Callable[[Path, Callable[[int], None]], None], folder: Path
) -> int:
    """Work on one input after another; whatever one of them fails at is said in a line, and the next one follows.

    Args:
        paths: inputs.
        sizes: pixels of those that are worked on; the others failed before.
        work: called with an input and a function that is told of finished pixels.
        folder: where results go, for the last line.

    Returns:
        The command's exit code.
    """
    done, pixels, started = 0, 0, time.monotonic()

    def advance(count: int) -> None:
        work_done.advance(count / 1e6)

    with Work("predicting", sum(sizes.values()) / 1e6, "Mpx") as work_done:
        for number, path in enumerate((path for path in paths if path in sizes), start=1):
            work_done.advance(0, f"file {number} of {len(sizes)}")
            try:
                work(path, advance)
                done += 1
            except Exception as error:  # decoders, GDAL, OGR, GEOS, PROJ... raise nearly anything
                say(f"failed: {complaint(path, error)}")
            pixels += sizes[path]
            work_done.advance(pixels / 1e6 - work_done.done)
    seconds = max(time.monotonic() - started, 1e-9)
    say(f"{done} of {len(paths)} files to {folder} in {seconds:.1f} s ({pixels / 1e6 / seconds:.2f} Mpx/s)")
    return 0 if done == len(paths) else PARTIAL


def complaint(path: Path, error: Exception) -> str:
    """One line on what went wrong with an input."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"not enough memory{f' ({text})' if text else ''}; close other programs, or cut the image into parts"
    elif not isinstance(error, (ValueError, OSError)) or not text:
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    name = " ".join(str(path).split())
    return text if name in text else f"{name}: {text}"


def announce(sizes: Mapping[Path, int], predictor: Predictor, folder: Path, each: float) -> dict[Path, int]:
    """Check the disk and, before a long run, say how long it will take.

    Args:
        sizes: pixels of the inputs.
        predictor: the network(s).
        folder: where results go.
        each: bytes that a pixel takes on the disk.

    Returns:
        Pixels of the inputs that can be done; one that needs more disk than there is, alone, is named.

    Raises:
        ValueError: the disk has too little space for the others.
    """
    free = free_bytes(folder)
    good = {path: pixels for path, pixels in sizes.items() if pixels * each <= free}
    for path in sizes.keys() - good.keys() if good else ():
        needed = sizes[path] * each / 1e9
        say(f"failed: {path}: about {needed:.3g} GB needed, {free / 1e9:.3g} GB free; choose another disk")
    good = good or dict(sizes)
    pixels = sum(good.values())
    check_disk(folder, round(pixels * each))
    if pixels >= 1_000_000:
        seconds = pixels * predictor.seconds_per_pixel() * (4 if predictor.tta else 1)
        if seconds > LONG_RUN:
            needed = pixels * each / 1e9
            say(f"{pixels / 1e6:.1f} Mpx, about {seconds / 60:.1f} min, at most {needed:.2f} GB on disk")
    return good


def disk_per_pixel(predictor: Predictor, products: Products) -> float:
    """Bytes that a pixel takes at most: finished rows, the files made of them with their overviews, the overlay.

    A COG is copied from a plain file, beside smaller copies for its overviews.
    """
    layers = layers_of(predictor, probability=products.prob, confidence=products.vector != "none")
    kept = sum(layer.bytes_per_pixel for layer in layers.values())
    made = sum(layer.bytes_per_pixel for name, layer in layers.items() if name != "confidence") * 4 / 3
    plain = layers["probability" if products.prob else "mask"].bytes_per_pixel * 5 / 3 if products.cog else 0
    return kept + made + plain + 3 * products.overlay
