"""Segment images: ``python potsdam_points/infer.py picture.jpg folder/``; without inputs, ``input_images/``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common.command.cli import run_command
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.images.write import write_mask
from common.inference.files import (
    InferConfig,
    Predictor,
    Result,
    infer_files,
    infer_inputs,
    is_large,
    load_predictor,
    protect_input,
    write_picture,
    write_result_vectors,
)
from common.labels import NODATA
from potsdam_points.labels import decode
from potsdam_points.task import TASK

INPUT, OUTPUT = Path("input_images"), Path("output_images")


@dataclass(frozen=True)
class Config(InferConfig):
    """Segment images of any size. Without inputs: input_images/ to output_images/<name>_mask.png in palette colors."""


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    if not config.input and not INPUT.is_dir():
        raise FileNotFoundError(
            f"no INPUT given and there is no folder {INPUT}/; pass images or folders, or make that folder"
        )
    paths = find_images(config.input or (INPUT,))
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or (Path("outputs") / TASK.name if config.input else OUTPUT)

    if config.input:
        return infer_inputs(config, paths, predictor, folder, tags)
    products = replace(config.products(tags), prob=False, overlay=False)

    def write(path: Path, stem: str, result: Result) -> None:
        write_colors(folder, stem, result, predictor, tags)
        write_result_vectors(folder, stem, result, predictor.card, products)

    return infer_files(
        paths, predictor, write, folder, input_range=config.input_range, products=products, streamed=is_large
    )


def write_colors(folder: Path, stem: str, result: Result, predictor: Predictor, tags: dict[str, str]) -> None:
    """Write ``<stem>_mask.png`` in palette colors (no data: black), and of a GeoTIFF the georeferenced classes too."""
    picture, raster = folder / f"{stem}_mask.png", result.raster
    protect_input(picture, raster.path)
    write_picture(picture, decode(np.where(raster.valid, result.mask, np.uint8(NODATA))))
    if raster.is_georeferenced:
        write_mask(folder / f"{stem}_mask.tif", result.mask, palette=predictor.card.palette, like=raster, tags=tags)


if __name__ == "__main__":
    run_command(main)
