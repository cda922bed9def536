"""Score a checkpoint: ``python hela_nuclei/evaluate.py --checkpoint best_iou.pt --data-root Fluo-N2DL-HeLa``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.pairs import say_notes
from common.inference.predictor import Cut, Predictor
from common.inference.score import EvaluateConfig, ids_of_split
from common.metrics.split_scores import print_scores
from common.networks.precision import choose_precision
from hela_nuclei.data import described, find_frames, load_frames
from hela_nuclei.predict import NucleiPredictor
from hela_nuclei.scoring import score_frames
from hela_nuclei.task import TASK


@dataclass(frozen=True)
class Config(EvaluateConfig):
    """Score a network against masks. The last line of stdout is one JSON object.

    Examples:
        python hela_nuclei/evaluate.py --checkpoint runs/hela_nuclei/RUN/best_iou.pt --data-root Fluo-N2DL-HeLa
    """

    # Data
    truth: Literal["ST", "GT"] = "ST"
    """Which masks of the challenge."""
    border: int = 25
    """Width of the band outside the challenge's field of interest, pixels."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    checkpoints, precision = TASK.checkpoints(config.checkpoint), choose_precision(config.device, config.amp)
    cut = Cut(tta=config.tta)
    predictor = Predictor.load(TASK, checkpoints, precision, cut, threshold=config.threshold)
    wanted = ids_of_split(predictor.card, config)
    found = find_frames(config.data_root, images=config.images, labels=config.labels, truth=config.truth)
    say_notes(found.notes())
    frames = [frame for frame in found.frames if wanted is None or frame.id in wanted]
    if not frames:
        raise ValueError(f"none of the {config.split} part's frames is there any more; use --split all")
    loaded, problems = load_frames(frames, predictor.ranges(config.input_range))
    for problem in problems:
        say(f"failed: {problem}")
    if not loaded:
        return PARTIAL
    described(loaded)  # warns where the values hardly fit their range
    scores = score_frames(NucleiPredictor(predictor), loaded, config.border)
    print_scores(TASK.name, config.split, scores.result())
    return PARTIAL if problems else 0


if __name__ == "__main__":
    run_command(main)
