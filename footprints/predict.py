"""From a checkpoint to a network: ours, or the original package's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.networks import load as networks
from common.networks.checkpoint import ModelCard, StateDict
from footprints.model import RefineNet, build_model, recognize

TASK = "footprints"
CLASSES = ["background", "building"]
PALETTE = {0: (0, 0, 0), 1: (230, 60, 40)}
TILE = 512
SOURCE_THRESHOLD = 0.45
"""What the original project calls a building; its files do not say."""


def load_network(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the original package's ``ReFineNet`` (images / 255, threshold 0.45).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    return networks.load_network(path, TASK, build_model, adopt)


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the original package's weights (or our own without one).

    Raises:
        ValueError: they predict something else than one class.
    """
    found = recognize(state)
    if found is None:
        return None
    if found[1]["outputs"] != 1:
        raise ValueError(f"it has {found[1]['outputs']} outputs; this task's networks have one, the building's")
    return ModelCard(TASK, *found, CLASSES, PALETTE, threshold=SOURCE_THRESHOLD), state


def initialize(model: nn.Module, weights: str) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder), or the path of a checkpoint.

    Raises:
        ValueError, FileNotFoundError: see `common.networks.load.initialize`.
    """
    if isinstance(model, RefineNet):
        name = "resnet50" if model.layer4[-1].conv1.in_channels == 2048 else "resnet34"
        networks.initialize(model, weights, model.torchvision_encoder, name=name)
    else:
        networks.initialize(model, weights, None, arch="refinenet")
