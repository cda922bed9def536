"""From a checkpoint to a network: ours, or one of segmentation-models-pytorch as the source wrote it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from common.inference.files import Predictor
from common.losses import SegmentationLoss
from common.networks import load as networks
from common.networks.checkpoint import ModelCard, StateDict
from permeability.labels import CLASSES, PALETTE
from permeability.model import build_model, recognize
from permeability.samples import Normalization
from permeability.weights import initialize

__all__ = ["TASK", "TILE", "initialize", "load_network", "prediction_loss"]

TASK = "permeability"
TILE = 512


def load_network(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the source's (two logits, its mean and standard deviation).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    return networks.load_network(path, TASK, build_model, adopt)


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for weights of segmentation-models-pytorch (or our own without one).

    Raises:
        ValueError: they predict something else than the two classes, or read something else than RGB.
    """
    found = recognize(state)
    if found is None:
        return None
    arch, arch_args = found
    if arch_args["outputs"] not in (1, 2):
        raise ValueError(f"it has {arch_args['outputs']} outputs; this task has two classes: {', '.join(CLASSES)}")
    if arch_args["channels"] != 3:
        raise ValueError(
            f"it reads {arch_args['channels']} bands and does not say how they are normalized; 3 are known"
        )
    return ModelCard(TASK, arch, arch_args, CLASSES, PALETTE, normalization=dict(Normalization().card())), state


def prediction_loss(loss: SegmentationLoss, predictor: Predictor, logits: Tensor, target: Tensor) -> Tensor:
    """The training's loss of a prediction, which comes as one logit of P(permeable).

    Args:
        loss: of as many logits as the network has.
        predictor: whose prediction it is.
        logits: (N, 1, H, W).
        target: (N, H, W).
    """
    one = predictor.card.arch_args.get("outputs", 2) == 1
    result: Tensor = loss(logits if one else torch.cat([-logits / 2, logits / 2], dim=1), target)
    return result
