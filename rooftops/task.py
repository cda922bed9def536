"""What this task is: its classes and networks, and how weights of segmentation-models-pytorch are recognized."""

from __future__ import annotations

from dataclasses import replace

from common.networks.checkpoint import ModelCard, StateDict
from common.networks.shipped import BUILDINGS
from common.networks.task import Task
from common.networks.unet_small import UNetSmall, recognize_unet_small
from rooftops.labels import PALETTE, Coding
from rooftops.model import NORMALIZATION, DeepLabV3Plus, recognize

TILE = 640
"""Side of the tiles of large pictures, pixels of the network's input."""


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for weights without one: a ``DeepLabV3Plus`` of segmentation-models-pytorch, or our own.

    Such a file does not say how pictures were read: ImageNet's normalization and the pictures' own size are assumed
    (``--scale``), and output stride 16.
    """
    arch, arch_args = "unet_small", recognize_unet_small(state)
    if arch_args is None:
        arch, arch_args = "deeplabv3plus", recognize(state)
    if arch_args is None:
        return None
    outputs = arch_args["outputs"]
    names = list(Coding().names) if outputs <= 2 else [f"class_{index}" for index in range(outputs)]
    palette = {index: PALETTE[index % len(PALETTE)] for index in range(len(names))}
    card = TASK.card(arch, arch_args, classes=names, palette=palette, normalization=NORMALIZATION)
    return card, state


def tile(card: ModelCard) -> int:
    """Side of tiles in the picture's pixels, such that the network sees `TILE`."""
    return round(TILE / card.scale)


ARCHITECTURES = {"deeplabv3plus": DeepLabV3Plus, "unet_small": UNetSmall}
SHIPPED = replace(BUILDINGS, gsd=0.1)
TASK = Task("rooftops", list(Coding().names), Coding().palette, ARCHITECTURES, adopt, tile, shipped=SHIPPED)
