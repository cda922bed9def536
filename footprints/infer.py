"""Find buildings: ``python footprints/infer.py raster.tif folder/ --vector gpkg --regularize``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import run_command
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig, load_predictor
from common.inference.products import Refine
from footprints.task import TASK


@dataclass(frozen=True)
class Config(InferConfig):
    """Find buildings in images and rasters of any size.

    Examples:
        python footprints/infer.py raster.tif folder/ --vector gpkg --regularize
        python footprints/infer.py picture.jpg --gsd 0.3 --checkpoint runs/footprints/RUN/best_iou.pt
    """

    # Output
    regularize: bool = False
    """Give polygons right angles, each only where it still covers the same ground (IoU of at least 0.8)."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        super().__post_init__()
        if self.regularize and self.vector == "none":
            raise ValueError("--regularize is about polygons: choose their format with --vector, such as --vector gpkg")


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    paths = find_images(config.input)
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or Path("outputs") / TASK.name
    refine: Refine | None = None
    if config.regularize:
        from footprints.regularize import regularize_all as refine  # shapely and pyproj
    products = config.products(tags, refine=refine)
    return infer_inputs(config, paths, predictor, folder, products)


if __name__ == "__main__":
    run_command(main)
