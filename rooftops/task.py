"""What this task is: its classes and networks, and how weights of segmentation-models-pytorch are recognized."""

from __future__ import annotations

from common.networks.checkpoint import ModelCard, StateDict
from common.networks.task import Task
from rooftops.labels import PALETTE, Coding
from rooftops.model import NORMALIZATION, DeepLabV3Plus, recognize

TILE = 640
"""Side of the tiles of large pictures, pixels of the network's input."""


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the weights of a ``DeepLabV3Plus`` without one, of segmentation-models-pytorch or ours.

    Such a file does not say how pictures were read: ImageNet's normalization and the pictures' own size are assumed
    (``--scale``), and output stride 16.
    """
    arch_args = recognize(state)
    if arch_args is None:
        return None
    outputs = arch_args["outputs"]
    names = list(Coding().names) if outputs <= 2 else [f"class_{index}" for index in range(outputs)]
    palette = {index: PALETTE[index % len(PALETTE)] for index in range(len(names))}
    card = TASK.card("deeplabv3plus", arch_args, classes=names, palette=palette, normalization=NORMALIZATION)
    return card, state


TASK = Task(
    "rooftops", list(Coding().names), Coding().palette, {"deeplabv3plus": DeepLabV3Plus}, adopt,
    tile=lambda card: round(TILE / card.scale),
)  # fmt: skip
