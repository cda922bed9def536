"""Inference of color images and rasters of any size: from files to masks, one input after another.

Pictures are predicted in memory. What is georeferenced or large is streamed (`common.inference.stream`); both ways
give the same masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from common.command.cli import PARTIAL, say
from common.data.inputs import output_stems
from common.images.display import overlay, stretch
from common.images.gdal import pixel_count, place_note
from common.images.ranges import Range, range_warning, to_channels
from common.images.rasters import Raster, read_raster
from common.images.write import mask_suffix, write_mask, write_probability
from common.inference.outputs import check_disk, provenance
from common.inference.predictor import Predictor, confidence_of, normalize, rescale
from common.inference.products import (
    Products,
    Refine,
    protect_input,
    targets,
    warn_of_range,
    write_picture,
    write_vectors,
)
from common.inference.resolution import fitted
from common.inference.stream import is_large, is_streamed, layers_of, stream_file
from common.labels import NODATA
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.networks.task import Task

__all__ = [
    "InferConfig",
    "Predictor",
    "Products",
    "Result",
    "infer_files",
    "infer_inputs",
    "is_large",
    "is_streamed",
    "normalize",
    "predict_file",
    "protect_input",
    "rescale",
    "write_outputs",
    "write_picture",
    "write_result_vectors",
]

LONG_RUN = 60.0
"""Seconds from which on an estimate is worth a line."""


@dataclass(frozen=True)
class InferConfig:
    """Flags that every task's inference understands."""

    input: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of them (not recursive)."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s), or shipped; several are averaged. Default: the newest run's best, else the weights that ship."""
    output_dir: Path | None = None
    """Where results go; default outputs/<task>."""
    tile_size: int = 0
    """Side of the tiles in which larger images are predicted, pixels (0 = what suits the network)."""
    overlap: float = 0.25
    """Share of a tile that the next one covers again."""
    tta: bool = False
    """Average over flips: four times slower, a little better."""
    threshold: float | None = None
    """Two classes: foreground where P is at least this; default: the checkpoint's."""
    scale: float | None = None
    """Read images at this multiple of their size; default: the scale the network was trained at."""
    gsd: float = 0.0
    """Metres per pixel of pictures without georeference (0 = unknown); networks read at what they were trained at."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: those of the training, or the number type's."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="Where to compute.")] = "auto"
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], tyro.conf.arg(help="Mixed precision.")] = "auto"
    vector: Literal["none", "gpkg", "shp", "geojson"] = "none"
    """Polygons too: GeoPackage, shapefile or GeoJSON (in WGS 84)."""
    min_area: float = 0.0
    """Leave out polygons smaller than this, m2 (pixels, of a picture without georeference)."""
    simplify: float = 0.0
    """Simplify outlines by this tolerance in metres (or pixels); neighbors keep common edges."""
    cog: bool = False
    """Write GeoTIFFs as Cloud Optimized GeoTIFFs."""
    prob: bool = True
    """Write probabilities too; they take most of the disk."""

    def products(self, tags: Mapping[str, str], refine: Refine | None = None) -> Products:
        """What these flags ask for.

        Args:
            tags: provenance.
            refine: a task's own treatment of polygons.
        """
        return Products(
            self.vector, self.min_area, self.simplify, cog=self.cog, prob=self.prob, refine=refine, tags=tags
        )


# In memory


@dataclass(frozen=True)
class Result:
    """One input's prediction."""

    raster: Raster
    image: NDArray[np.float32]
    """(C, H, W) in 0...1, as the network saw it."""
    probability: NDArray[np.float32]
    mask: NDArray[np.uint8]
    """(H, W) class indices."""


WriteResult = Callable[[Path, str, Result], None]
"""Called with an input's path, the stem of its outputs and its result."""


def predict_file(path: Path, predictor: Predictor, input_range: Range | None = None) -> Result:
    """Read and predict one image in memory.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged or no single picture.
    """
    raster = read_raster(path)
    value_range = predictor.ranges(input_range).of(raster.data.dtype)
    warn_of_range(path, range_warning(raster.data, raster.valid, value_range))
    image = to_channels(raster.data, raster.valid, predictor.channels, value_range)
    probability = predictor(image)
    return Result(raster, image, probability, predictor.classify(probability))


def write_outputs(
    folder: Path,
    stem: str,
    result: Result,
    card: ModelCard,
    tags: Mapping[str, str],
    products: Products | None = None,
) -> None:
    """Write ``<stem>_mask``, ``<stem>_prob.tif``, ``<stem>_overlay.png`` and polygons, of a result in memory.

    Raises:
        ValueError: an output would replace the input.
    """
    raster, products = result.raster, products or Products()
    for target in targets(folder, stem, products, mask_suffix(raster)):
        protect_input(target, raster.path)
    shown = np.where(raster.valid, result.mask, np.uint8(NODATA))
    write_mask(folder / f"{stem}_mask{mask_suffix(raster)}", result.mask, palette=card.palette, like=raster, tags=tags)
    if products.prob:
        write_probability(folder / f"{stem}_prob.tif", result.probability, like=raster, tags=tags)
    if products.overlay:
        picture = stretch(np.round(result.image[:3] * 255).astype(np.uint8))
        write_picture(folder / f"{stem}_overlay.png", overlay(picture, shown, card.palette))
    write_result_vectors(folder, stem, result, card, products)


def write_result_vectors(folder: Path, stem: str, result: Result, card: ModelCard, products: Products) -> None:
    """Write the polygons of a result in memory, if there are to be any."""
    if products.vector == "none":
        return
    raster = result.raster
    shown = np.where(raster.valid, result.mask, np.uint8(NODATA))
    confidence = confidence_of(result.probability, result.mask)
    write_vectors(
        folder / f"{stem}.{products.vector}",
        lambda first, last: (shown[first:last], confidence[first:last]),
        shown.shape,
        card,
        products,
        (raster.crs, raster.transform),
    )


# Any image


def load_predictor(config: InferConfig, task: Task) -> tuple[Predictor, dict[str, str]]:
    """The network(s) that the flags name, or the newest run's, and the provenance of what they predict.

    Args:
        config: the command's flags.
        task: whose networks they are.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, or the flags do not fit the networks.
    """
    checkpoints = task.checkpoints(config.checkpoint)
    predictor = Predictor.load(
        task, checkpoints, choose_precision(config.device, config.amp), tile=config.tile_size, overlap=config.overlap,
        threshold=config.threshold, tta="flips" if config.tta else "none", scale=config.scale,
    )  # fmt: skip
    return predictor, provenance(checkpoints, predictor.threshold if predictor.binary else None)


def infer_inputs(
    config: InferConfig,
    paths: Sequence[Path],
    predictor: Predictor,
    folder: Path,
    tags: Mapping[str, str],
    *,
    refine: Refine | None = None,
) -> int:
    """Predict every input and write what the flags ask for.

    Args:
        config: the command's flags.
        paths: inputs.
        predictor: the network(s).
        folder: where results go.
        tags: provenance.
        refine: a task's own treatment of the polygons.

    Returns:
        The command's exit code.

    Raises:
        ValueError: the disk has too little space; nothing is written then.
    """
    products = config.products(tags, refine)

    def write(path: Path, stem: str, result: Result) -> None:
        write_outputs(folder, stem, result, predictor.card, tags, products)

    return infer_files(
        paths, predictor, write, folder, input_range=config.input_range, products=products, gsd=config.gsd
    )


def infer_files(
    paths: Sequence[Path],
    predictor: Predictor,
    write: WriteResult,
    folder: Path,
    *,
    input_range: Range | None = None,
    products: Products | None = None,
    streamed: Callable[[Path], bool] = is_streamed,
    gsd: float = 0.0,
) -> int:
    """Predict and write every input; bad ones are named and left out.

    Args:
        paths: inputs.
        predictor: the network(s).
        write: writes what was predicted in memory.
        folder: where results go.
        input_range: values that mean black and white.
        products: what is written of streamed rasters; None = all inputs are read as a whole.
        streamed: which inputs are.
        gsd: metres per pixel of inputs without a coordinate system; 0 = unknown.

    Returns:
        The command's exit code.

    Raises:
        ValueError: the disk has too little space; nothing is written then.
    """
    predictor.ranges(input_range)  # refuses a bad --input-range now, not once per file
    stems = output_stems(paths)
    sizes = {path: pixel_count(path) for path in paths}
    announce(sum(sizes.values()), predictor, folder, products)
    failed, started = 0, time.monotonic()

    def advance(pixels: int) -> None:
        bar.update(pixels / 1e6)

    with tqdm(total=sum(sizes.values()) / 1e6, desc=predictor.card.task, unit="Mpx", disable=None) as bar:
        for number, path in enumerate(paths):
            try:
                if (note := place_note(path)) is not None:
                    say(f"note: {note}")
                here = fitted(predictor, path, gsd)
                if products is not None and streamed(path):
                    stream_file(
                        path,
                        here,
                        folder,
                        stems[path],
                        products,
                        input_range=input_range,
                        progress=advance,
                    )
                else:
                    write(path, stems[path], predict_file(path, here, input_range))
            except (ValueError, OSError) as error:
                say(f"failed: {str(error) if str(path) in str(error) else f'{path}: {error}'}")
                failed += 1
            bar.update(sum(sizes[done] for done in paths[: number + 1]) / 1e6 - bar.n)
    seconds = time.monotonic() - started
    speed = sum(sizes.values()) / 1e6 / max(seconds, 1e-9)
    say(f"{len(paths) - failed} of {len(paths)} files to {folder} in {seconds:.1f} s ({speed:.2f} Mpx/s)")
    return PARTIAL if failed else 0


def announce(pixels: int, predictor: Predictor, folder: Path, products: Products | None = None) -> None:
    """Check the disk and, before a long run, say how long it will take.

    Raises:
        ValueError: the disk has too little space.
    """
    products = products or Products()
    layers = layers_of(predictor, probability=products.prob, confidence=products.vector != "none")
    kept = sum(layer.bytes_per_pixel for layer in layers.values())
    needed = pixels * (2 * kept + 3)  # spooled rows, files made of them, overlay
    check_disk(folder, needed)
    if pixels < 1_000_000:
        return
    seconds = pixels * predictor.seconds_per_pixel() * (4 if predictor.tta != "none" else 1)
    if seconds > LONG_RUN:
        say(f"{pixels / 1e6:.1f} Mpx, about {seconds / 60:.1f} min, at most {needed / 1e9:.2f} GB on disk")
