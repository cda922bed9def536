"""Score a checkpoint: ``python permeability/evaluate.py --checkpoint FILE.pt --data-root DIR --split test``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import run_command
from common.data.pairs import say_notes
from common.inference.predictor import Predictor
from common.inference.score import CONTEXT, TILE_SIDE, AerialEvaluateConfig, LabeledData, evaluate_command
from permeability.data import Join, find_files, inspect_sites, join_sites, plan_tiles
from permeability.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against masks. The last line of stdout is one JSON object.

    Examples:
        python permeability/evaluate.py --checkpoint runs/permeability/RUN/best_iou.pt --data-root pnoa --split val
    """

    # Data
    reproject: bool = False
    """Warp masks of another coordinate system or grid (always done if the training did)."""


def load(config: Config, predictor: Predictor, wanted: set[str] | None) -> LabeledData:
    """Join the files and open the sites of these ids."""
    reproject = config.reproject or bool(predictor.card.config.get("reproject", False))
    join = Join(reproject, ranges=predictor.ranges(config.input_range))
    sites, problems, notes = join_sites(*find_files(config.data_root, config.images, config.labels), join)
    say_notes(notes)
    found, bad = inspect_sites([site for site in sites if wanted is None or site.id in wanted], predictor.channels)
    samples = [tile.sample(predictor.channels) for tile in plan_tiles(found.sites, TILE_SIDE, CONTEXT)]
    files = {site.id: site.image.path for site in found.sites}
    return LabeledData(samples, len(found.sites), problems + bad, join.ranges, files)


main = partial(evaluate_command, Config, TASK, load)

if __name__ == "__main__":
    run_command(main)
