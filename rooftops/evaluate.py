"""Score a checkpoint: ``python rooftops/evaluate.py --checkpoint F --data-root DIR --split test``."""

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
from common.inference.score import AerialEvaluateConfig, Sample, ids_of_split, load_predictor, score_samples
from common.metrics.split_scores import print_scores
from rooftops.data import Pictures, find_pairs, load_pictures
from rooftops.labels import Coding, read_coding
from rooftops.task import TASK


@dataclass(frozen=True)
class Config(AerialEvaluateConfig):
    """Score a network against labels. The last line of stdout is one JSON object."""

    classes: Path | None = None
    """YAML file that names each class and its value in the labels (default: rooftops, 0 and 255)."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    predictor = load_predictor(config, TASK)
    coding = read_coding(config.classes)
    check_classes(coding, predictor.card.classes)
    wanted = ids_of_split(predictor.card, config)
    pairs, missing, notes = find_pairs(config.data_root, images=config.images, labels=config.labels)
    for note in notes:
        say(f"note: {note}")
    chosen = [pair for pair in pairs if wanted is None or pair.id in wanted]
    pictures, problems = load_pictures(chosen, coding, predictor.ranges(config.input_range))
    problems = (missing if wanted is None else []) + problems
    require_usable(len(pictures), problems, skip_bad=True)
    value_rows(pictures.ranges)
    predictor = fitted(predictor, chosen[0].image, config.gsd)
    scores = score_samples(predictor, read_samples(pictures, pictures.pairs))
    print_scores(TASK.name, config.split, scores.result())
    return PARTIAL if problems else 0


def read_samples(pictures: Pictures, ids: Iterable[str]) -> Iterator[Sample]:
    """Read pictures one by one."""
    for picture in (pictures[name] for name in ids):
        yield picture.id, picture.unit(), picture.classes


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


if __name__ == "__main__":
    run_command(main)
