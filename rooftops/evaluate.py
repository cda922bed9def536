"""Score a checkpoint: ``python rooftops/evaluate.py --checkpoint F --data-root DIR --split test``."""

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
from common.inference.score import AerialEvaluateConfig, LabeledData, evaluate_command
from rooftops.data import find_pairs, load_pictures
from rooftops.labels import Coding, read_coding
from rooftops.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object.

    Examples:
        python rooftops/evaluate.py --checkpoint runs/rooftops/RUN/best_iou.pt --data-root DIR
    """

    # Data
    classes: Path | None = None
    """YAML file that names each class and its value in the labels (default: rooftops, 0 and 255)."""


def load(config: Config, predictor: Predictor, wanted: set[str] | None) -> LabeledData:
    """Read the pictures of these ids."""
    coding = read_coding(config.classes)
    check_classes(coding, predictor.card.classes)
    pairs, missing, notes = find_pairs(config.data_root, images=config.images, labels=config.labels)
    say_notes(notes)
    chosen = [pair for pair in pairs if wanted is None or pair.id in wanted]
    pictures, problems = load_pictures(chosen, coding, predictor.ranges(config.input_range))
    problems = (missing if wanted is None else []) + problems
    files = {pair.id: pair.image for pair in chosen}
    return LabeledData(pictures.samples(pictures.pairs), len(pictures), problems, pictures.ranges, files)


def check_classes(coding: Coding, names: list[str]) -> None:
    """Refuse labels of other classes than the network's.

    Raises:
        ValueError: the names or their order differ; names both.
    """
    if list(coding.names) != names:
        raise ValueError(
            f"the labels' classes ({', '.join(coding.names)}) are not the network's ({', '.join(names)}); "
            "give the training's file with --classes"
        )


main = partial(evaluate_command, Config, TASK, load)

if __name__ == "__main__":
    run_command(main)
