"""Find roofs on pictures: ``python rooftops/infer.py picture.jpg folder/ --vector gpkg``."""

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
from rooftops.predict import TASK, default_tile, load_network


@dataclass(frozen=True)
class Config(InferConfig):
    """Find roofs on pictures and rasters of any size."""


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    if not config.input:
        raise ValueError("no INPUT given; name pictures, or folders of them")
    paths = find_images(config.input)
    checkpoints = list(config.checkpoint) or [newest_checkpoint(TASK)]
    say(f"checkpoint: {', '.join(map(str, checkpoints))}")
    predictor = Predictor.load(
        checkpoints,
        load_network,
        choose_precision(config.device, config.amp),
        overlap=config.overlap,
        threshold=config.threshold,
        tta="flips" if config.tta else "none",
        scale=config.scale,
    )
    predictor.tile = config.tile_size or default_tile(predictor.card, config.scale)
    tags = provenance(checkpoints, predictor.threshold if predictor.binary else None)
    return infer_inputs(config, paths, predictor, config.output_dir or Path("outputs") / TASK, tags)


if __name__ == "__main__":
    run_command(main)
