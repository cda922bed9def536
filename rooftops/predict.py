"""From a checkpoint to a network: ours, or one trained with segmentation-models-pytorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from common.inference.files import Predictor
from common.losses import SegmentationLoss
from common.networks import load as networks
from common.networks.backbones import imagenet_state, load_encoder
from common.networks.checkpoint import ModelCard, StateDict
from rooftops.labels import PALETTE, Coding
from rooftops.model import DeepLabV3Plus, build_model, recognize
from rooftops.samples import NORMALIZATION

TASK = "rooftops"
TILE = 640
"""Side of the tiles of large pictures, pixels of the network's input."""


def load_network(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the state dict of a ``DeepLabV3Plus`` of segmentation-models-pytorch.

    Such a file does not say how pictures were read: ImageNet's normalization and the pictures' own size are assumed
    (``--scale``), and output stride 16.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    return networks.load_network(path, TASK, build_model, adopt)


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the weights of a DeepLabV3+ without one."""
    arch_args = recognize(state)
    if arch_args is None:
        return None
    outputs = arch_args["outputs"]
    names = list(Coding().names) if outputs <= 2 else [f"class_{index}" for index in range(outputs)]
    palette = {index: PALETTE[index % len(PALETTE)] for index in range(len(names))}
    return ModelCard(TASK, "deeplabv3plus", arch_args, names, palette, normalization=NORMALIZATION), state


def default_tile(card: ModelCard, scale: float | None = None) -> int:
    """Side of tiles in pixels of the picture, such that the network, reading at ``scale``, sees `TILE`."""
    return round(TILE / (scale or card.scale))


def initialize(model: DeepLabV3Plus, encoder: str, weights: str) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder), or the path of a checkpoint.

    Raises:
        ValueError, FileNotFoundError: see `common.networks.load.initialize`.
    """
    if weights == "imagenet" and encoder.startswith("efficientnet"):
        load_encoder(model.encoder, imagenet_state(encoder), stem="features.0.0.weight")
    else:
        networks.initialize(model, weights, model.encoder, name=encoder)


def picture_loss(predictor: Predictor, loss: SegmentationLoss, logits: Tensor, target: Tensor) -> Tensor:
    """The training's loss of what a `Predictor` gives: of two classes a single logit, where the network has two."""
    outputs = int(predictor.card.arch_args.get("outputs", 2))
    if logits.shape[1] == 1 and outputs == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return loss(logits, target)  # type: ignore[no-any-return]
