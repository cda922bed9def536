"""Score a checkpoint: ``python footprints/evaluate.py --checkpoint FILE.pt --data-root DIR --split test``."""

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
from footprints.data import find_pairs, load_scenes, plan_tiles
from footprints.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object.

    Examples:
        python footprints/evaluate.py --checkpoint runs/footprints/RUN/best_iou.pt --data-root crops
        python footprints/evaluate.py --checkpoint shipped --images pictures --labels outlines.gpkg --split all
    """


def load(config: Config, predictor: Predictor, wanted: set[str] | None) -> LabeledData:
    """Open the scenes of these ids."""
    pairs, unpaired = find_pairs(config.data_root, images=config.images, labels=config.labels)
    say_notes(unpaired)
    chosen = [pair for pair in pairs if wanted is None or pair.id in wanted]
    found, problems = load_scenes(chosen, ranges=predictor.ranges(config.input_range))
    samples = [tile.sample for tile in plan_tiles(found.scenes, TILE_SIDE, CONTEXT)]
    return LabeledData(samples, len(found.scenes), problems, found.ranges, {pair.id: pair.image for pair in chosen})


main = partial(evaluate_command, Config, TASK, load)

if __name__ == "__main__":
    run_command(main)
