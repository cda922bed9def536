"""Networks by name, with initial weights, and from checkpoints: what every task does alike.

A task says which architectures it has and how it recognizes the original project's weights; reading files, wording of
errors and loading are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.command.cli import say
from common.networks.backbones import imagenet_state, load_encoder
from common.networks.checkpoint import (
    ModelCard,
    StateDict,
    foreign_state_dict,
    is_ours,
    load_checkpoint,
    load_matching,
    read_payload,
    read_weights,
)

Adopt = Callable[[StateDict], tuple[ModelCard, StateDict] | None]
"""Makes a card (and the weights that belong to the network) for another project's state dict; None = not known."""


def build_network(
    architectures: Mapping[str, Callable[..., nn.Module]], arch: str, arch_args: Mapping[str, Any]
) -> nn.Module:
    """Build a network by name.

    Raises:
        ValueError: the name or an argument is unknown.
    """
    if arch not in architectures:
        raise ValueError(f"unknown network '{arch}'; known are {', '.join(architectures)}")
    try:
        return architectures[arch](**arch_args)
    except TypeError as error:
        raise ValueError(f"network {arch}: {error}") from error


def load_network(
    path: Path, task: str, build_model: Callable[..., nn.Module], adopt: Adopt
) -> tuple[nn.Module, ModelCard]:
    """Load one of our checkpoints, or the original project's weights, as a network ready for inference.

    Args:
        path: the file.
        task: whose checkpoint it must be.
        build_model: builds the network from ``card.arch`` and ``card.arch_args``.
        adopt: recognizes weights that are not ours.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
    """
    payload = read_payload(path)
    if is_ours(payload):
        card, weights, _ = load_checkpoint(path, task)
    else:
        state = foreign_state_dict(payload)
        try:
            adopted = adopt(state)
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error
        if adopted is None:
            keys = ", ".join(list(state)[:4])
            raise ValueError(f"checkpoint {path} holds none of this task's networks (its first keys: {keys})")
        card, weights = adopted
    model = build_model(card.arch, **card.arch_args)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint {path} does not fit the network {card.arch}: {reason}") from error
    return model.eval(), card


def initialize(
    model: nn.Module, weights: str, encoder: nn.Module | None, *, name: str = "resnet18", arch: str = "resnet18"
) -> None:
    """Set a network's initial weights in place: ``none``, ``imagenet`` (the encoder's), or the path of a checkpoint.

    Args:
        model: the network.
        weights: what to start from.
        encoder: the part of it that has torchvision's names, None if it has no such part.
        name: torchvision's name of that encoder, such as ``resnet18``.
        arch: the task's ``--arch`` that has such an encoder, for the message.

    Raises:
        ValueError: the network has no ImageNet encoder, the download failed, or the checkpoint does not fit.
        FileNotFoundError: the checkpoint does not exist.
    """
    if weights == "none":
        return
    if weights != "imagenet":
        say(f"weights: {load_matching(model, read_weights(Path(weights)))} from {weights}")
        return
    if encoder is None:
        raise ValueError(
            f"--weights imagenet needs a pretrained encoder, which this network lacks: use --arch {arch}, "
            "or --weights none"
        )
    load_encoder(encoder, imagenet_state(name))
