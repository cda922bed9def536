"""From a finished training to the file that ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from common.command.cli import say
from common.files import file_hash
from common.networks.checkpoint import load_checkpoint, read_weights, save_checkpoint
from common.networks.reach import measure_reach


def ship(checkpoint: Path, network: nn.Module, out: Path, start: Path | None = None) -> None:
    """Write a run's best weights as a file that ships: matrices in half precision, its reach, no paths of the machine.

    Args:
        checkpoint: the run's ``best_iou.pt``.
        network: of the run; it takes those weights.
        out: the file to write.
        start: weights that the run began with, to be averaged with its best: what either learned stays, less of what
            only the last worlds show (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models").
    """
    card, weights, _ = load_checkpoint(checkpoint)
    if start is not None:
        before = read_weights(start)
        weights = {
            key: torch.lerp(before[key].float(), value, 0.5) if value.is_floating_point() else value
            for key, value in weights.items()
        }
    network.load_state_dict(weights)
    reach = measure_reach(network.eval(), card)
    small = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    kept = replace(card, reach=reach, config={"loss": card.config["loss"]}, data_root="generated scenes")
    save_checkpoint(out, kept, small)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {file_hash(out)}")
