"""Score a checkpoint: ``python permeability/evaluate.py --checkpoint FILE.pt --data-root DIR --split test``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import PARTIAL, run_command, say
from common.config import parse_flags
from common.devices import choose_precision
from common.evaluation import SplitScores, print_scores
from common.inference import Predictor
from common.losses import SegmentationLoss, build_loss
from common.pairs import require_usable
from common.scoring import EvaluateConfig, Sample, ids_of_split, score_samples
from permeability.data import Join, Tile, find_files, join_sites, look_at, plan_tiles
from permeability.predict import TASK, TILE, load_network, prediction_loss
from permeability.site import to_unit

TILE_SIDE, CONTEXT = 1024, 64
"""Sites are scored in tiles of this side, predicted with so much of their surroundings."""


@dataclass(frozen=True)
class Config(EvaluateConfig):
    """Score a network against masks. The last line of stdout is one JSON object."""

    reproject: bool = False
    """Warp masks of another coordinate system or grid (always done if the training did)."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    predictor = Predictor.load(
        config.checkpoint,
        load_network,
        choose_precision(config.device, config.amp),
        threshold=config.threshold,
        tta="flips" if config.tta else "none",
        tile=TILE,
    )
    wanted = ids_of_split(predictor.card, config)
    how = Join(config.reproject or bool(predictor.card.config.get("reproject", False)))
    sites, problems, notes = join_sites(*find_files(config.data_root, config.images, config.labels), how)
    for note in notes:
        say(f"note: {note}")
    found, bad = look_at([site for site in sites if wanted is None or site.id in wanted], predictor.channels)
    require_usable(len(found.sites), problems + bad, skip_bad=True)
    settings = predictor.card.config
    loss = build_loss(str(settings.get("loss", "ce")), label_smoothing=float(settings.get("label_smoothing", 0.0)))
    scores = score_tiles(predictor, list(plan_tiles(found.sites, TILE_SIDE, CONTEXT)), loss)
    print_scores(TASK, config.split, {**scores.result(), "n_images": len(found.sites)})
    return PARTIAL if problems or bad else 0


def score_tiles(predictor: Predictor, tiles: Sequence[Tile], loss: SegmentationLoss) -> SplitScores:
    """Predict and score tiles one by one; every pixel counts once."""

    def samples() -> Iterator[Sample]:
        for tile in tiles:
            image, classes = tile.read(predictor.channels)
            yield tile.id, to_unit(image), classes

    return score_samples(predictor, samples(), lambda logits, target: prediction_loss(loss, predictor, logits, target))


if __name__ == "__main__":
    run_command(main)
