"""The readers that commands use, on many files in one process: each is read, or refused in one line.

footprints networks, vector files of polygons and configurations, by their suffix
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rasterio.crs import CRS as RasterCRS

from common.command.cli import say
from common.command.config import parse_config
from common.images.grids import Grid
from common.vectors.burn import PolygonLayer
from footprints.task import TASK
from footprints.train import Config
from tests.hostile.kit import CRS, PLACE, SIZE


def read_polygons(path: Path) -> None:
    """Burn all polygons of a layer onto a small grid."""
    layer, place = PolygonLayer(path), Grid(path, *SIZE, PLACE, RasterCRS.from_string(CRS))
    if layer.crs and layer.meets(place):
        layer.over(place).burn((0, 0, *SIZE))


READERS: dict[str, Callable[[Path], object]] = {
    ".pt": TASK.load,
    ".gpkg": read_polygons,
    ".geojson": read_polygons,
    ".yaml": lambda path: parse_config(Config, ["--config", str(path)]),
}


def main() -> int:
    """Read the files that the command line names; exit code 1 if one is refused."""
    refused = 0
    for path in map(Path, sys.argv[1:]):
        try:
            READERS.get(path.suffix, read_polygons)(path)
        except (ValueError, OSError) as error:
            say(f"failed: {path.name if path.name not in str(error) else ''} {' '.join(str(error).split())}")
            refused += 1
    return 1 if refused else 0
