"""Ground resolution: rasters are read at metres per pixel that their networks saw in training."""

from __future__ import annotations

from pathlib import Path

from common.command.cli import say
from common.images.gdal import open_raster, place_of
from common.inference.predictor import Predictor


def ground_resolution(path: Path) -> float | None:
    """Metres per pixel of a raster, the root of a pixel's area on the ground; None without a coordinate system.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged.
    """
    with open_raster(path) as dataset:
        crs, grid = dataset.crs, place_of(dataset)
        if grid is None or crs is None:
            return None
        from common.images.ground import metres_per_pixel  # pyproj takes a tenth of a second

        return metres_per_pixel(grid, crs, dataset.shape)


def fitted(predictor: Predictor, path: Path, gsd: float = 0.0) -> Predictor:
    """The predictor for one file: reading it at ground resolutions that suit the networks, said in a line.

    Args:
        predictor: the network(s); unchanged where the command fixed the scale, or theirs is unknown.
        path: the file.
        gsd: metres per pixel of a file without a coordinate system; 0 = unknown.
    """
    if predictor.fixed or not predictor.card.gsd[1]:
        return predictor
    found, (low, high) = ground_resolution(path) or gsd, predictor.card.gsd
    taken = found or round(predictor.card.scale * high, 6)
    here, scales = predictor.at(taken), predictor.card.scales_at(taken)
    size = f"{taken:.3g} m per pixel" if found else f"unknown ground resolution, taken for {taken:.3g} m per pixel"
    *most, last = (f"{taken / scale:.3g}" for scale in scales)
    reading = f"{', '.join(most)} and {last}" if most else last
    remedy = "--scale overrides" if found else "--gsd METRES tells"
    note = f"{size}, read at {reading} m (trained at {low:g} to {high:g}; {remedy})"
    if scales != (1,) and note not in predictor.notes:
        predictor.notes.add(note)
        say(f"{path.name} and all alike: {note}")
    return here
