"""Initial weights of a network: ``--weights none``, ``imagenet`` or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.backbones import imagenet_state, load_encoder
from common.checkpoint import load_matching, read_weights
from common.cli import say
from hela_nuclei.model import UNetResnet


def initialize(model: nn.Module, weights: str) -> None:
    """Set a network's initial weights in place.

    Raises:
        ValueError: the network has no ImageNet encoder, the download failed, or the checkpoint does not fit.
        FileNotFoundError: the checkpoint does not exist.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        if not isinstance(model, UNetResnet):
            raise ValueError(
                "--weights imagenet needs a pretrained encoder: use --arch unet_resnet18, or --weights none"
            )
        load_encoder(model.encoder, imagenet_state("resnet18"))
        return
    say(f"weights: {load_matching(model, read_weights(Path(weights)))} from {weights}")
