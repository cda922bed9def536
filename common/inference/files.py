"""Inference of color images and rasters of any size: from files to masks, one input after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

from common.command.cli import say
from common.data.inputs import output_stems
from common.files import Workplace
from common.images.gdal import pixel_count
from common.images.sheets import build_mosaic
from common.inference.flags import InferConfig
from common.inference.job import Job, busy
from common.inference.mosaic import STEM, MosaicJob
from common.inference.predictor import Predictor
from common.inference.products import Products, check_disk, free_bytes
from common.inference.spool import workplace
from common.inference.stream import kept_layers
from common.inference.tally import Tally, complaint
from common.outputs import OutputFolder

LONG_RUN = 60.0
"""Seconds from which on an estimate is worth a line."""


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
    if config.mosaic:
        with mosaic_of(job, stems) as (job, mosaic):
            return _infer(config, job, {mosaic: STEM})
    return _infer(config, job, stems)


@contextmanager
def mosaic_of(job: Job, stems: Mapping[Path, str]) -> Iterator[tuple[MosaicJob, Path]]:
    """The job of predicting sheets as one raster, and that raster; it stays while finished rows of it are of use.

    Args:
        job: that of a sheet.
        stems: of the sheets' results.

    Raises:
        ValueError: the sheets do not fit together.
    """
    folder = job.outputs.path
    made = not folder.exists()
    mosaic = build_mosaic(list(stems), folder)
    options = {each.name: getattr(job, each.name) for each in fields(job)}
    whole = MosaicJob(**options, mosaic=mosaic, sheets=stems)
    try:
        yield whole, mosaic
    finally:
        if not workplace(folder, STEM, whole.origin(mosaic)).path.exists():
            mosaic.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                folder.rmdir()  # if nothing came to lie in it


def _infer(config: InferConfig, job: Job, stems: Mapping[Path, str]) -> int:
    """Predict inputs, here or on workers."""
    folder, paths = job.outputs.path, list(stems)
    names = {path: job.names(path, stems[path]) for path in paths}
    keep_inputs(folder, job.inputs(paths), [name for some in names.values() for name in some])
    for path in paths:
        keep_apart(workplace(folder, stems[path], job.origin(path)), job.origin(path))
    sizes = {path: pixel_count(path) for path in paths}
    good = announce(sizes, job.predictor, folder, disk_per_pixel(job.predictor, job.products))
    job.outputs.sweep()
    if config.spread:
        from common.inference.cluster.plans import Inputs, on_workers  # Dask: only where it is asked for

        return on_workers(config, job.predictor, job, Inputs(paths, stems, good))
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
    with Tally(paths, sizes, folder) as tally:
        for number, path in enumerate((path for path in paths if path in sizes), start=1):
            tally.note(f"file {number} of {len(sizes)}")
            try:
                work(path, partial(tally.advance, path))
            except Exception as error:  # decoders, GDAL, OGR, GEOS, PROJ... raise nearly anything
                tally.ended(path, complaint(path, error))
            else:
                tally.ended(path)
    return tally.close()


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
        seconds = pixels * predictor.seconds_per_pixel()
        if seconds > LONG_RUN:
            needed = pixels * each / 1e9
            say(f"{pixels / 1e6:.1f} Mpx, about {seconds / 60:.1f} min, at most {needed:.2f} GB on disk")
    return good


def disk_per_pixel(predictor: Predictor, products: Products) -> float:
    """Bytes that a pixel takes at most: finished rows, the files made of them with their overviews, the overlay.

    All files are written at once, beside smaller copies for their overviews; a COG is copied from a plain file.
    """
    layers = kept_layers(predictor, products)
    kept = sum(layer.bytes_per_pixel for layer in layers.values())
    made = sum(layer.bytes_per_pixel for name, layer in layers.items() if name != "confidence")
    return kept + made * (8 if products.cog else 5) / 3 + 3 * products.overlay
