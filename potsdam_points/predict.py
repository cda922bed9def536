"""From a checkpoint to a network: ours, or the original project's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.networks import load as networks
from common.networks.checkpoint import ModelCard, StateDict
from potsdam_points.labels import CLASSES, PALETTE
from potsdam_points.model import ResNet18Segmentation, build_model, recognize

TASK = "potsdam_points"
SOURCE_TILE, TILE = 300, 512


def load_network(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the original project's state dict (images / 255, read at half size).

    The original's seventh output, "undefined", is dropped where probabilities are computed.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    return networks.load_network(path, TASK, build_model, adopt)


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the original project's weights (or our own without one).

    Raises:
        ValueError: they predict other classes than this task's.
    """
    found = recognize(state)
    if found is None:
        return None
    if found[1]["outputs"] not in (len(CLASSES), len(CLASSES) + 1):
        raise ValueError(f"it predicts {found[1]['outputs']} classes; this task has {len(CLASSES)} and undefined")
    return ModelCard(TASK, *found, CLASSES, PALETTE, scale=1 / found[1]["upsample"]), state


def default_tile(card: ModelCard) -> int:
    """The source's decoder knows 300 x 300 patches alone; the others take larger tiles."""
    return SOURCE_TILE if card.arch_args.get("decoder") == "plain" else TILE


def initialize(model: nn.Module, weights: str) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder), or the path of a checkpoint.

    Raises:
        ValueError, FileNotFoundError: see `common.networks.load.initialize`.
    """
    encoder = None
    if isinstance(model, ResNet18Segmentation):
        parts = {name.removeprefix("encoder_"): part for name, part in model.named_children() if name != "decoder"}
        encoder = nn.ModuleDict(parts)
    networks.initialize(model, weights, encoder)
