"""Score a checkpoint: ``python footprints/evaluate.py --checkpoint FILE.pt --data-root DIR --split test``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.pairs import require_usable, value_rows
from common.inference.resolution import fitted
from common.inference.score import (
    CONTEXT,
    TILE_SIDE,
    AerialEvaluateConfig,
    Sample,
    ids_of_split,
    load_predictor,
    score_samples,
)
from common.metrics.split_scores import print_scores
from footprints.data import Tile, find_pairs, load_scenes, plan_tiles
from footprints.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    predictor = load_predictor(config, TASK)
    wanted = ids_of_split(predictor.card, config)
    pairs, unpaired = find_pairs(config.data_root, images=config.images, labels=config.labels)
    for note in unpaired:
        say(f"note: {note}")
    chosen = [pair for pair in pairs if wanted is None or pair.id in wanted]
    found, problems = load_scenes(chosen, ranges=predictor.ranges(config.input_range))
    require_usable(len(found.scenes), problems, skip_bad=True)
    value_rows(found.ranges)
    predictor = fitted(predictor, chosen[0].image, config.gsd)
    scores = score_samples(predictor, read_samples(plan_tiles(found.scenes, TILE_SIDE, CONTEXT)))
    print_scores(TASK.name, config.split, {**scores.result(), "n_images": len(found.scenes)})
    return PARTIAL if problems else 0


def read_samples(tiles: Iterable[Tile]) -> Iterator[Sample]:
    """Read tiles one by one; every pixel counts once."""
    for tile in tiles:
        yield tile.id, *tile.labeled()


if __name__ == "__main__":
    run_command(main)
