"""Segment images: ``python potsdam_points/infer.py picture.jpg folder/``; without inputs, ``input_images/``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import run_command
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.images.rasters import read_label
from common.images.write import write_picture
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig, load_predictor
from common.inference.products import Extra
from common.labels import Color
from potsdam_points.labels import decode
from potsdam_points.task import TASK

INPUT, OUTPUT = Path("input_images"), Path("output_images")


@dataclass(frozen=True)
class Config(InferConfig):
    """Segment images of any size.

    Without inputs, or of input_images/ alone, as its source: to output_images/<name>_mask.png in palette colors.

    Examples:
        python potsdam_points/infer.py folder/ --tta
    """


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    inputs = config.input or (INPUT,)
    as_source = tuple(inputs) == (INPUT,)
    if not config.input and not INPUT.is_dir():
        raise FileNotFoundError(
            f"no INPUT given and there is no folder {INPUT}/; pass images or folders, or make that folder"
        )
    paths = find_images(inputs)
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or (OUTPUT if as_source else Path("outputs") / TASK.name)
    products = config.products(tags)
    if as_source:
        colored = Extra("_mask.png", partial(write_colors, predictor.card.palette))
        products = replace(products, prob=False, overlay=False, extra=colored)
    return infer_inputs(config, paths, predictor, folder, products)


def write_colors(palette: Mapping[int, Color], source: Path, mask: Path, target: Path) -> None:
    """Write a mask in palette colors (no data: black) as PNG, in place of a PNG of classes."""
    write_picture(target, decode(read_label(mask, colors=False), palette))


if __name__ == "__main__":
    run_command(main)
