"""Find roofs on pictures: ``python rooftops/infer.py picture.jpg folder/ --vector gpkg``."""

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
from rooftops.task import TASK


@dataclass(frozen=True)
class Config(InferConfig):
    """Find roofs on pictures and rasters of any size.

    Examples:
        python rooftops/infer.py picture.jpg folder/ --vector gpkg --min-area 10
    """


def main() -> int:
    """Find inputs, load networks, segment one input after another."""
    config = parse_flags(Config)
    paths = find_images(config.input)
    predictor, tags = load_predictor(config, TASK)
    folder = config.output_dir or Path("outputs") / TASK.name
    return infer_inputs(config, paths, predictor, folder, config.products(tags))


if __name__ == "__main__":
    run_command(main)
