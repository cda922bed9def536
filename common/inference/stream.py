"""Prediction of rasters of any size in bounded memory.

A thread reads the file in strips of rows ahead of the network, the network's tiles are blended in the rows under one
row of tiles (`predict_rows` of tiling.py), and every finished band of rows is appended to a spool on disk. A run that
was killed finds the spool and goes on after its last band. From the whole spool the results are made, each under a
temporary name and then renamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from torch import Tensor

from common.command.cli import say
from common.images.gdal import decoding, open_raster, place_of, read_bands, sample_bands
from common.images.mosaics import MOSAIC
from common.images.pictures import open_picture
from common.images.ranges import Range, range_warning, to_numbers
from common.images.rasters import TIFF_EXTENSIONS
from common.inference.predictor import Predictor
from common.inference.products import FULL, Products, overlay_step
from common.inference.spool import Appender, Layer, Spool, spool_key
from common.inference.strips import StripReader, Thumbnail
from common.inference.tiling import NOT_FINITE
from common.labels import NODATA

Mask = NDArray[np.bool_]

LARGE = 64_000_000
"""Pixels from which on a picture is streamed too."""
ORIENTATION = 274
"""EXIF tag; a picture that is not upright is turned in memory."""
GOING_ON = "rows were finished before, going on from there"


def layers_of(predictor: Predictor, *, probability: bool, confidence: bool, kind: str = "float32") -> dict[str, Layer]:
    """What a run has to keep: the mask always, the rest if results need it."""
    layers = {"mask": Layer(1, "uint8")}
    if probability:
        layers["probability"] = Layer(predictor.outputs, kind)
    if confidence:
        layers["confidence"] = Layer(1, "uint16")  # half the disk of a float; a mean over pixels needs no more
    return layers


def kept_layers(predictor: Predictor, products: Products) -> dict[str, Layer]:
    """What a run has to keep for its products."""
    wanted = {"probability": products.prob, "confidence": products.vector != "none"}
    return layers_of(predictor, **wanted, kind=products.prob_type)


def predict_bands(
    source: Path,
    predictor: Predictor,
    layers: Mapping[str, Layer],
    rows: tuple[int, int],
    *,
    input_range: Range | None = None,
    thumbnail: Thumbnail | None = None,
) -> Generator[tuple[int, dict[str, NDArray[Any]]]]:
    """Predict a range of a raster's rows, band by band.

    Memory holds some strips of rows: it grows with the raster's width, not with its height.

    Args:
        source: any file that GDAL reads: 8 or 16 bits or floats, one band or many, with or without georeference.
        predictor: the network(s).
        layers: what is kept of each pixel.
        rows: first row and end of the range, both ends of bands (`Predictor.band_edges`); what a band holds does not
            depend on them.
        input_range: values that mean black and white; None = the number type's.
        thumbnail: collects the picture as it is read.

    Yields:
        The first row of a band, and its layers (C, rows, W); 255 and NaN where the raster has no data.

    Raises:
        ValueError: the file is damaged, or the network gives NaN.
    """
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), open_raster(source) as dataset:

        def convert(data: NDArray[Any], valid: Mask) -> NDArray[Any]:
            return to_numbers(data, valid, predictor.channels, input_range)

        strips = StripReader(dataset, convert, thumbnail)
        first, last = rows
        bands = predictor.rows(strips.read, dataset.shape, first_row=first, last_row=last, value_range=input_range)
        with closing(bands):  # whatever happens, the reading thread ends before the file is closed
            for row, band in bands:
                valid = strips.take_valid(row, row + band.shape[1])
                kept = _layers(predictor, band, valid, layers)
                if kept is None:
                    raise ValueError(f"{source}: {NOT_FINITE}")
                yield row, kept


def predict_raster(
    source: Path,
    predictor: Predictor,
    spool: Spool,
    *,
    input_range: Range | None = None,
    progress: Callable[[int], None] | None = None,
    thumbnail: Thumbnail | None = None,
) -> None:
    """Predict a raster into a spool, from the spool's last finished row on; see `predict_bands`.

    Args:
        source: the raster.
        predictor: the network(s).
        spool: where finished rows go.
        input_range: values that mean black and white.
        progress: called with the number of pixels that were finished since the last call.
        thumbnail: collects the picture as it is read.
    """
    rows = spool.rows, spool.size[0]
    predicted = predict_bands(source, predictor, spool.layers, rows, input_range=input_range, thumbnail=thumbnail)
    with Appender(spool) as append, closing(predicted) as bands:
        for _, band in bands:
            spool.wait(0)  # ends with the error of those who take the rows
            append(band)
            if progress is not None:
                progress(band["mask"].size)


def _layers(
    predictor: Predictor, band: Tensor, valid: Mask, wanted: Mapping[str, Layer]
) -> dict[str, NDArray[Any]] | None:
    """What is kept of a finished band, found on the device; None if the network gave NaN or infinite outputs."""
    ok = None if valid.all() else torch.from_numpy(valid).to(band.device)
    if not math.isfinite(float((band if ok is None else torch.where(ok, band, 0.0)).sum())):
        return None
    mask, confidence = predictor.choose(band)
    found: dict[str, Tensor] = {}
    if "confidence" in wanted:
        known = confidence if ok is None else torch.where(ok, confidence, 0.0)
        found["confidence"] = known.mul(FULL).round_().to(torch.uint16)[None]
    if "probability" in wanted:
        found["probability"] = _coded(band, ok, wanted["probability"].dtype)
    found["mask"] = (mask if ok is None else torch.where(ok, mask, NODATA))[None]
    return {name: layer.cpu().numpy() for name, layer in found.items()}


def _coded(band: Tensor, ok: Tensor | None, kind: str) -> Tensor:
    """Probabilities as they are kept: see `common.images.write.quantize`."""
    if kind == "float32":
        return band.clone() if ok is None else torch.where(ok, band, torch.nan)
    codes = band.mul(np.iinfo(kind).max - 1).round_()
    return (codes if ok is None else torch.where(ok, codes, float(np.iinfo(kind).max))).to(getattr(torch, kind))


def is_placed(path: Path) -> bool:
    """Whether an image is georeferenced; False for what cannot be opened."""
    try:
        with open_raster(path) as dataset:
            return place_of(dataset) is not None
    except (ValueError, OSError):
        return False


def is_streamed(path: Path) -> bool:
    """Whether an image is georeferenced or large, and can be read in parts."""
    if not _can_stream(path):
        return False
    with open_raster(path) as dataset:
        return place_of(dataset) is not None or dataset.width * dataset.height > LARGE


def _can_stream(path: Path) -> bool:
    """Whether GDAL reads an image just as `read_raster` does: one upright picture of whole or real numbers."""
    try:
        with open_raster(path) as dataset:
            read_bands(dataset, (0, 1), (0, 1))
            if path.suffix.lower() in (*TIFF_EXTENSIONS, ".jp2", MOSAIC) or place_of(dataset) is not None:
                return True
        with decoding(path), open_picture(path) as picture:
            return bool(picture.getexif().get(ORIENTATION, 1) == 1)
    except (ValueError, OSError):
        return False  # reading it as a whole will say what is wrong


class Streamed:
    """A raster that is predicted into a spool: results from there, the picture from the file.

    Args:
        spool: with the rows that are finished.
        dataset: the open raster.
        thumbnail: its picture, collected in prediction.
        predict: finishes the other rows.
    """

    streamed = True

    def __init__(self, spool: Spool, dataset: DatasetReader, thumbnail: Thumbnail, predict: Callable[[], None]) -> None:
        self._spool, self._dataset, self._thumbnail, self._predict = spool, dataset, thumbnail, predict
        self.size, self.place = spool.size, (dataset.crs, place_of(dataset))

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W), once they are finished."""
        self._spool.wait(last)
        return self._spool.read(name, first, last)

    def complete(self) -> None:
        """Predict what is not there yet."""
        self._predict()

    def stop(self, error: BaseException) -> None:
        """End the prediction, and all `read` that wait, with an error."""
        self._spool.stop(error)

    def picture(self, step: int, first: int, last: int) -> NDArray[np.uint8]:
        """Every n-th pixel of every n-th row from ``first`` on; what this run did not read is read now."""
        assert self._thumbnail.step == step
        return self._thumbnail.rows(self._dataset, first, last)


@contextmanager
def stream_file(
    path: Path,
    predictor: Predictor,
    folder: Path,
    products: Products,
    *,
    input_range: Range | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Streamed]:
    """One raster of any size, to be predicted into a spool; what a killed run left there is continued.

    Args:
        path: the raster.
        predictor: the network(s).
        folder: of the spool.
        products: what is to be written.
        input_range: values that mean black and white.
        progress: called with numbers of finished pixels.

    Raises:
        ValueError: the raster is damaged.
    """
    with open_raster(path) as dataset:
        value_range = predictor.ranges(input_range).of(dataset.dtypes[0])
        warn_of_range(path, range_warning(*sample_bands(dataset), value_range))
        spool = open_spool(path, predictor, folder, products, dataset.shape, value_range)
        if spool.rows:
            say(f"{path}: {spool.rows} of {dataset.height} {GOING_ON}")
            if progress is not None:
                progress(spool.rows * dataset.width)
        thumbnail = Thumbnail(dataset.shape, overlay_step(dataset.shape), value_range)

        def predict() -> None:
            predict_raster(path, predictor, spool, input_range=value_range, progress=progress, thumbnail=thumbnail)

        yield Streamed(spool, dataset, thumbnail, predict)


def open_spool(
    path: Path,
    predictor: Predictor,
    folder: Path,
    products: Products,
    size: tuple[int, int],
    value_range: Range | None,
) -> Spool:
    """The spool of a run: a new one, or what a run with the same input, checkpoints and options left behind."""
    layers = kept_layers(predictor, products)
    arguments = {
        **predictor.settings(size),
        "checkpoints": products.tags.get("checkpoint_sha256"),
        "range": value_range,
        "layers": sorted((name, *layer) for name, layer in layers.items()),
    }
    return Spool(folder, size, layers, spool_key(path, arguments), predictor.band_edges(size))


def warn_of_range(path: Path, warning: str | None) -> None:
    """Say that values look as if they were read with the wrong range."""
    if warning:
        say(f"warning: {path}: {warning}")
