"""From a finished training to the file that ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.command.cli import say
from common.files import file_hash
from common.networks.checkpoint import load_checkpoint, save_checkpoint


def ship(checkpoint: Path, out: Path) -> None:
    """Write a run's best weights as a file that ships: matrices in half precision, no paths of the machine.

    Args:
        checkpoint: the run's ``best_iou.pt``.
        out: the file to write.
    """
    card, weights, _ = load_checkpoint(checkpoint)
    small = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    save_checkpoint(out, replace(card, config={"loss": card.config["loss"]}, data_root="generated scenes"), small)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {file_hash(out)}")
