"""Score a checkpoint: ``python potsdam_points/evaluate.py --checkpoint FILE.pt --data-root patches --split val``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.pairs import require_usable, value_rows
from common.inference.resolution import fitted
from common.inference.score import AerialEvaluateConfig, ids_of_split, load_predictor, score_samples
from common.metrics.split_scores import print_scores
from potsdam_points.data import Unknown, find_patches, load_patches
from potsdam_points.labels import Coding
from potsdam_points.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object."""

    label_coding: Coding = "auto"
    """palette = ISPRS colors; index = 1...6 with 0 ignored; auto = by the number of bands."""
    unknown: Unknown = "refuse"
    """Colors or indices that are no class: refuse the file, or ignore those pixels."""
    points_file: Path | None = None
    """Score at the points of this table id,x,y,class in place of dense labels."""

    def __post_init__(self) -> None:
        """Validate fields against each other; points need no --labels."""
        if self.points_file is None or self.images is None or self.labels is not None:
            super().__post_init__()
        elif not self.checkpoint:
            raise ValueError("no checkpoint given; pass --checkpoint FILE")


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    predictor = load_predictor(config, TASK)
    wanted = ids_of_split(predictor.card, config)
    patches, unpaired = find_patches(
        config.data_root, images=config.images, labels=config.labels, points_file=config.points_file
    )
    for note in unpaired:
        say(f"note: {note}")
    ranges = predictor.ranges(config.input_range)
    loaded, problems = load_patches(
        [p for p in patches if wanted is None or p.id in wanted], config.label_coding, config.unknown, ranges
    )
    require_usable(len(loaded), problems, skip_bad=True)
    value_rows(ranges)
    predictor = fitted(predictor, patches[0].image, config.gsd)
    scores = score_samples(predictor, ((patch.id, patch.unit(), patch.classes) for patch in loaded))
    print_scores(TASK.name, config.split, scores.result())
    return PARTIAL if problems else 0


if __name__ == "__main__":
    run_command(main)
