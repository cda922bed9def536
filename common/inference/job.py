"""One input: read, predicted, its products written, in a workplace that one process at a time holds.

Pictures are predicted in memory. What is georeferenced or large is streamed (`common.inference.stream`); both ways
give the same masks.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.command.cli import say
from common.files import Workplace
from common.images.gdal import open_raster, place_note
from common.images.ranges import Range, range_warning, to_channels
from common.images.rasters import Raster, read_raster
from common.images.write import Arrays
from common.inference.predictor import Predictor, confidence_of
from common.inference.products import Complete, Prediction, Products, write_products
from common.inference.resolution import fitted
from common.inference.spool import workplace
from common.inference.stream import is_placed, is_streamed, stream_file, warn_of_range
from common.labels import NODATA
from common.outputs import OutputFolder, relative_source
from common.vectors.formats import SIDECARS


class InMemory(Complete, Arrays):
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
            confidence=confidence_of(probability)[None],
            probability=np.where(raster.valid, probability, np.float32(np.nan)),
        )
        self._picture = np.round(image[:3] * 255).astype(np.uint8)

    def picture(self, step: int, first: int, last: int) -> NDArray[np.uint8]:
        """Every n-th pixel of every n-th row from ``first`` on, (3, h, w)."""
        return self._picture[:, first:last:step, ::step]


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


class Reading(NamedTuple):
    """How a raster is read."""

    predictor: Predictor
    """At the raster's ground resolution."""
    size: tuple[int, int]
    range: Range | None


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

    def inputs(self, paths: Sequence[Path]) -> list[Path]:
        """The user's files behind inputs."""
        return [self.origin(path) for path in paths]

    def names(self, path: Path, stem: str) -> list[str]:
        """Files that an input's products are written to."""
        return self.products.names(stem, is_placed(path))

    def check(self, path: Path, stem: str) -> None:
        """Make sure that nothing of the user's would be replaced; see `OutputFolder.check`."""
        self.outputs.check(self.names(path, stem), self.origin(path))

    def shipped(self) -> Callable[[Predictor], Job]:
        """What makes this job in another process, of the networks that were loaded there."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        del options["predictor"]
        return partial(type(self), **options | {"outputs": OutputFolder(self.outputs.path)})

    def divides(self, path: Path) -> bool:
        """Whether an input can be predicted in ranges of rows."""
        return is_streamed(path)

    def reading(self, path: Path) -> Reading:
        """How a raster is read."""
        predictor = fitted(self.predictor, path, self.gsd)
        with open_raster(path) as dataset:
            return Reading(predictor, dataset.shape, predictor.ranges(self.input_range).of(dataset.dtypes[0]))

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
        self.check(path, stem)
        self.outputs.path.mkdir(parents=True, exist_ok=True)
        with working(workplace(self.outputs.path, stem, origin), origin) as here:
            if is_streamed(path):
                with stream_file(
                    path, predictor, here.path, products, input_range=self.input_range, progress=progress
                ) as rows:
                    self.deliver(rows, path, stem, products, here)
            else:
                self.deliver(predict_file(path, predictor, self.input_range), path, stem, products, here)

    def deliver(self, rows: Prediction, path: Path, stem: str, products: Products, here: Workplace) -> None:
        """Write the products of an input and put them in place."""
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
