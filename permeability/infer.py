"""Map permeable ground: ``python permeability/infer.py sheet.tif --vector shp --min-area 20``.

Sheets of any size are streamed; ``--window COL ROW W H`` looks at a part of each. Beside the shared outputs there is a
figure of every input, photograph and prediction with a legend.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.inputs import find_images, output_stems
from common.images.gdal import decoding, open_raster
from common.images.write import GEOTIFF
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig, load_predictor
from common.inference.products import Extra
from common.inference.tally import complaint
from common.networks.checkpoint import ModelCard
from permeability.task import TASK

FIGURE_SIDE = 1400
"""Pixels of the longer side in figures."""
ROWS = 512
"""Rows of a window in memory at once."""


@dataclass(frozen=True)
class Config(InferConfig):
    """Map permeable and non-permeable ground in images and rasters of any size.

    Examples:
        python permeability/infer.py sheet.tif --vector shp --min-area 20
        python permeability/infer.py sheet.tif --window 4000 2000 1024 1024
    """

    # Input
    window: tuple[int, int, int, int] | None = None
    """COL ROW W H: only this part of each input, in its pixels."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        if self.window is not None and self.mosaic:
            raise ValueError("--window is a part of each input, --mosaic puts them together: give one of them")
        if self.window is not None and (min(self.window[:2]) < 0 or min(self.window[2:]) < 1):
            raise ValueError(
                f"--window {' '.join(map(str, self.window))}: COL and ROW must not be negative, W and H at least 1"
            )


def main() -> int:
    """Find inputs, load networks, map one input after another."""
    config = parse_flags(Config)
    paths = find_images(config.input)
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or Path("outputs") / TASK.name
    products = config.products(tags, extra=Extra("_figure.png", partial(draw_figure, predictor.card)))
    if config.window is None:
        return infer_inputs(config, paths, predictor, folder, products)
    with tempfile.TemporaryDirectory(prefix="windows-") as place:
        parts = cut_all(paths, Path(place), config.window)
        code = infer_inputs(config, list(parts), predictor, folder, products, origins=parts) if parts else PARTIAL
    return PARTIAL if len(parts) < len(paths) else code


def cut_all(paths: Sequence[Path], folder: Path, window: tuple[int, int, int, int]) -> dict[Path, Path]:
    """Cut the window out of each input; those where that fails are named. Gives the inputs by their parts."""
    stems, parts = output_stems(paths), {}
    for path in paths:
        try:
            parts[cut_out(path, folder / f"{stems[path]}.tif", window)] = path
        except Exception as error:  # one file's failure of any kind does not stop the others
            say(f"failed: {complaint(path, error)}")
    return parts


def cut_out(path: Path, target: Path, window: tuple[int, int, int, int]) -> Path:
    """Copy a window of a raster with its georeference, nodata and colors to a file of its own.

    Args:
        path: the raster.
        target: the window's position and size are added to its name.
        window: column, row, width, height.

    Returns:
        The file.

    Raises:
        ValueError: the window does not lie in the raster, or that is damaged.
    """
    col, row, width, height = window
    target = target.with_stem("_".join([target.stem, *map(str, window)]))
    with decoding(path), open_raster(path) as source:
        if col + width > source.width or row + height > source.height:
            raise ValueError(
                f"{path}: --window {col} {row} {width} {height} does not lie in its "
                f"{source.width} x {source.height} pixels (columns x rows)"
            )
        options = GEOTIFF | {"height": height, "width": width, "count": source.count, "dtype": source.dtypes[0]}
        options |= {
            "crs": source.crs,
            "nodata": source.nodata,
            "transform": source.transform @ Affine.translation(col, row),
        }
        if source.transform.is_identity and source.crs is None:
            del options["transform"]
        if ColorInterp.palette in source.colorinterp:
            options["photometric"] = "palette"
        masked = MaskFlags.per_dataset in source.mask_flag_enums[0] and ColorInterp.alpha not in source.colorinterp
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(target, "w", **options) as result:
            result.colorinterp = source.colorinterp
            if ColorInterp.palette in source.colorinterp:
                result.write_colormap(1, source.colormap(1))
            for first in range(0, height, ROWS):
                rows = min(ROWS, height - first)
                here = Window(col, row + first, width, rows)
                result.write(source.read(window=here), window=Window(0, first, width, rows))
                if masked:
                    result.write_mask(source.dataset_mask(window=here), window=Window(0, first, width, rows))
    return target


def draw_figure(card: ModelCard, source: Path, mask: Path, target: Path) -> None:
    """Write a figure: photograph and prediction with a legend."""
    from common.report.plots import predictions  # matplotlib takes most of a second

    row = (_thinned(source, Resampling.average), _thinned(mask, Resampling.nearest)[0])
    predictions([row], target, card.palette, ("photograph", "prediction"), card.classes)


def _thinned(path: Path, resampling: Resampling) -> NDArray[np.generic]:
    """All bands but alpha of a raster, at most as large as figures are."""
    with open_raster(path) as source:
        shrink = max(1.0, max(source.shape) / FIGURE_SIDE)
        size = [max(1, round(side / shrink)) for side in source.shape]
        bands = [i for i, meaning in enumerate(source.colorinterp, 1) if meaning != ColorInterp.alpha]
        data: NDArray[np.generic] = source.read(bands[:3], out_shape=(len(bands[:3]), *size), resampling=resampling)
        return data


if __name__ == "__main__":
    run_command(main)
