"""From a finished training to the file that ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from common.command.cli import say
from common.files import file_hash
from common.networks.checkpoint import StateDict, load_checkpoint, save_checkpoint
from common.networks.reach import measure_reach


def ship(checkpoint: Path, network: nn.Module, out: Path, others: Sequence[StateDict] = ()) -> None:
    """Write a run's best weights as a file that ships: matrices in half precision, its reach, no paths of the machine.

    Args:
        checkpoint: the run's ``best_iou.pt``.
        network: of the run; it takes those weights.
        out: the file to write.
        others: weights to be averaged with the run's best, such as those that it began with, or of a run that began
            with the same: what they all learned stays, less of what each alone saw last (Wortsman et al., 2022, "Model
            soups").
    """
    card, weights, _ = load_checkpoint(checkpoint)
    if others:
        soup = [weights, *others]
        weights = {
            key: torch.stack([each[key].float() for each in soup]).mean(dim=0) if value.is_floating_point() else value
            for key, value in weights.items()
        }
    network.load_state_dict(weights)
    reach = measure_reach(network.eval(), card)
    small = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    kept = replace(card, reach=reach, config={"loss": card.config["loss"]}, data_root="generated scenes")
    save_checkpoint(out, kept, small)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {file_hash(out)}")
