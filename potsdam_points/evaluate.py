"""Score a checkpoint: ``python potsdam_points/evaluate.py --checkpoint FILE.pt --data-root patches --split val``."""

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
from common.data.labeled import Sample
from common.data.pairs import say_notes
from common.inference.predictor import Predictor
from common.inference.score import AerialEvaluateConfig, LabeledData, evaluate_command
from potsdam_points.data import Unknown, find_patches, load_patches
from potsdam_points.labels import Coding
from potsdam_points.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object.

    Examples:
        python potsdam_points/evaluate.py --checkpoint shipped --data-root patches --split all
    """

    # Data
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


def load(config: Config, predictor: Predictor, wanted: set[str] | None) -> LabeledData:
    """Read the patches of these ids."""
    patches, unpaired = find_patches(
        config.data_root,
        images=config.images,
        labels=config.labels,
        points_file=config.points_file,
        classes=predictor.card.classes,
    )
    say_notes(unpaired)
    chosen, ranges = [p for p in patches if wanted is None or p.id in wanted], predictor.ranges(config.input_range)
    loaded, problems = load_patches(chosen, config.label_coding, config.unknown, ranges)
    files = {patch.id: patch.image for patch in chosen}
    return LabeledData(list(map(Sample.held, loaded)), len(loaded), problems, ranges, files)


main = partial(evaluate_command, Config, TASK, load)

if __name__ == "__main__":
    run_command(main)
