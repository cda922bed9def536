"""Find buildings: ``python footprints/infer.py raster.tif folder/ --vector gpkg --regularize``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import run_command, say
from common.config import parse_flags
from common.devices import choose_precision
from common.inference import InferConfig, Predictor, infer_inputs
from common.inputs import find_images
from common.outputs import provenance
from common.runs import newest_checkpoint
from footprints.predict import TASK, TILE, load_network
from footprints.regularize import regularize_all


@dataclass(frozen=True)
class Config(InferConfig):
    """Find buildings in images and rasters of any size."""

    regularize: bool = False
    """Give polygons right angles, each only where it still covers the same ground (IoU of at least 0.8)."""

    def __post_init__(self) -> None:
        """Check what one field cannot check alone."""
        if self.regularize and self.vector == "none":
            raise ValueError("--regularize is about polygons: choose their format with --vector, such as --vector gpkg")


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    if not config.input:
        raise ValueError("no INPUT given; pass images or folders of images")
    paths = find_images(config.input)
    checkpoints = list(config.checkpoint) or [newest_checkpoint(TASK)]
    say(f"checkpoint: {', '.join(map(str, checkpoints))}")
    predictor = Predictor.load(
        checkpoints,
        load_network,
        choose_precision(config.device, config.amp),
        tile=config.tile_size or TILE,
        overlap=config.overlap,
        threshold=config.threshold,
        tta="flips" if config.tta else "none",
        scale=config.scale,
    )
    tags = provenance(checkpoints, predictor.threshold)
    folder = config.output_dir or Path("outputs") / TASK
    refine = regularize_all if config.regularize else None
    return infer_inputs(config, paths, predictor, folder, tags, refine=refine)


if __name__ == "__main__":
    run_command(main)
