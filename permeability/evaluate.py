"""Score a checkpoint: ``python permeability/evaluate.py --checkpoint FILE.pt --data-root DIR --split test``."""

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
from common.images.ranges import to_unit
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
from permeability.data import Join, Tile, find_files, inspect_sites, join_sites, plan_tiles
from permeability.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against masks. The last line of stdout is one JSON object."""

    reproject: bool = False
    """Warp masks of another coordinate system or grid (always done if the training did)."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    predictor = load_predictor(config, TASK)
    wanted = ids_of_split(predictor.card, config)
    ranges = predictor.ranges(config.input_range)
    how = Join(config.reproject or bool(predictor.card.config.get("reproject", False)), ranges=ranges)
    sites, problems, notes = join_sites(*find_files(config.data_root, config.images, config.labels), how)
    for note in notes:
        say(f"note: {note}")
    found, bad = inspect_sites([site for site in sites if wanted is None or site.id in wanted], predictor.channels)
    require_usable(len(found.sites), problems + bad, skip_bad=True)
    value_rows(ranges)
    predictor = fitted(predictor, found.sites[0].image.path, config.gsd)
    scores = score_samples(predictor, read_samples(plan_tiles(found.sites, TILE_SIDE, CONTEXT), predictor.channels))
    print_scores(TASK.name, config.split, {**scores.result(), "n_images": len(found.sites)})
    return PARTIAL if problems or bad else 0


def read_samples(tiles: Iterable[Tile], channels: int) -> Iterator[Sample]:
    """Read tiles one by one; every pixel counts once."""
    for tile in tiles:
        image, classes = tile.read(channels)
        yield tile.id, to_unit(image), classes


if __name__ == "__main__":
    run_command(main)
