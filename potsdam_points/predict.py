"""From a checkpoint to a network: ours, or the original project's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.backbones import imagenet_state, load_encoder
from common.checkpoint import (
    ModelCard,
    foreign_state_dict,
    is_ours,
    load_checkpoint,
    load_matching,
    read_payload,
    read_weights,
)
from common.cli import say
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
    payload = read_payload(path)
    if is_ours(payload):
        card, weights, _ = load_checkpoint(path, TASK)
    else:
        weights = foreign_state_dict(payload)
        found = recognize(weights)
        if found is None:
            raise ValueError(
                f"checkpoint {path} holds none of this task's networks (its first keys: {', '.join(list(weights)[:4])})"
            )
        if found[1]["outputs"] not in (len(CLASSES), len(CLASSES) + 1):
            raise ValueError(
                f"checkpoint {path} predicts {found[1]['outputs']} classes; this task has {len(CLASSES)} and undefined"
            )
        card = ModelCard(TASK, *found, CLASSES, PALETTE, scale=1 / found[1]["upsample"])
    model = build_model(card.arch, **card.arch_args)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint {path} does not fit the network {card.arch}: {' '.join(str(error).split())[:200]}"
        ) from error
    return model.eval(), card


def default_tile(card: ModelCard) -> int:
    """The source's decoder knows 300 x 300 patches alone; the others take larger tiles."""
    return SOURCE_TILE if card.arch_args.get("decoder") == "plain" else TILE


def initialize(model: nn.Module, weights: str) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder), or the path of a checkpoint.

    Raises:
        ValueError: the network has no ImageNet encoder, the download failed, or the checkpoint does not fit.
        FileNotFoundError: the checkpoint does not exist.
    """
    if weights == "none":
        return
    if weights != "imagenet":
        say(f"weights: {load_matching(model, read_weights(Path(weights)))} from {weights}")
        return
    if not isinstance(model, ResNet18Segmentation):
        raise ValueError("--weights imagenet needs a pretrained encoder: use --arch resnet18, or --weights none")
    parts = nn.ModuleDict(
        {name.removeprefix("encoder_"): part for name, part in model.named_children() if name.startswith("encoder_")}
    )
    load_encoder(parts, imagenet_state("resnet18"))
