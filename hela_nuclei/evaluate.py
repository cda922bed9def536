"""Score a checkpoint: ``python hela_nuclei/evaluate.py --checkpoint best_iou.pt --data-root Fluo-N2DL-HeLa``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from common.cli import PARTIAL, run_command, say
from common.config import parse_flags
from common.devices import choose_precision
from common.evaluation import check_root, print_scores
from hela_nuclei.data import find_frames, load_frames
from hela_nuclei.predict import TASK, Predictor
from hela_nuclei.scoring import build_criterion, score_frames


@dataclass(frozen=True)
class Config:
    """Score a network against masks. The last line of stdout is one JSON object."""

    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """Checkpoint; several are averaged."""
    data_root: Path | None = None
    """Folder in the challenge's layout, or combined_dataset."""
    images: Path | None = None
    """Folder of frames, in place of --data-root; needs --labels."""
    labels: Path | None = None
    """Folder of masks."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Part of the training's split; all = every pair."""
    truth: Literal["ST", "GT"] = "ST"
    """Which masks of the challenge."""
    border: int = 25
    """Width of the band outside the challenge's field of interest, pixels."""
    threshold: float | None = None
    """Nucleus where P is at least this; default: the checkpoint's."""
    tta: bool = False
    """Average over flips."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision."""


def main() -> int:
    """Load, predict, score, print."""
    config = parse_flags(Config)
    if config.data_root is None and (config.images is None or config.labels is None):
        raise ValueError("no data given; pass --data-root, or --images and --labels")
    if not config.checkpoint:
        raise ValueError("no checkpoint given; pass --checkpoint FILE")
    predictor, card = Predictor.load(
        config.checkpoint, choose_precision(config.device, config.amp), threshold=config.threshold,
        tta="flips" if config.tta else "none",
    )  # fmt: skip
    if config.border < 0:
        raise ValueError(f"--border {config.border} must not be negative")
    check_root(str((config.data_root or config.images or Path()).resolve()), card.data_root, config.split)
    found = find_frames(config.data_root, images=config.images, labels=config.labels, truth=config.truth)
    frames = found.frames
    for note in found.notes():
        say(f"note: {note}")
    if config.split != "all":
        wanted = set(card.split.get(config.split, []))
        frames = [frame for frame in frames if frame.id in wanted]
        if not frames:
            raise ValueError(f"the {config.split} part of {config.checkpoint[0]} has no frames; use --split all")
    loaded, problems = load_frames(frames)
    for problem in problems:
        say(f"failed: {problem}")
    if not loaded:
        return PARTIAL
    scores = score_frames(predictor, loaded, build_criterion(str(card.config.get("loss", "bce"))), config.border)
    print_scores(TASK, config.split, scores.result())
    return PARTIAL if problems else 0


if __name__ == "__main__":
    run_command(main)
