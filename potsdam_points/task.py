"""What this task is: its classes and networks, and how the original project's weights are recognized."""

from __future__ import annotations

from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, StateDict
from common.networks.shipped import Shipped
from common.networks.task import Task
from potsdam_points.labels import CLASSES, PALETTE
from potsdam_points.model import ARCHITECTURES, recognize

SOURCE_TILE, TILE = 300, 512
"""The source's decoder knows 300 x 300 patches alone; the others take larger tiles."""


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the original project's weights (images / 255, read at half size), or for our own without one.

    The original's seventh output, "undefined", is dropped where probabilities are computed.

    Raises:
        ValueError: they predict other classes than this task's.
    """
    found = recognize(state)
    if found is None:
        return None
    if found[1]["outputs"] not in (len(CLASSES), len(CLASSES) + 1):
        raise ValueError(f"it predicts {found[1]['outputs']} classes; this task has {len(CLASSES)} and undefined")
    return TASK.card(*found, scale=1 / found[1]["upsample"], loss=LossRecipe("partial_ce")), state


def tile(card: ModelCard) -> int:
    """Side of tiles that suits the network's decoder."""
    return SOURCE_TILE if card.arch_args.get("decoder") == "plain" else TILE


GROUPS = [["impervious", "soil"], ["building"], ["low vegetation"], ["tree"], ["car"], ["clutter", "water"]]
"""Classes of the weights that ship, by class of this task."""
TASK = Task(
    "potsdam_points",
    CLASSES,
    PALETTE,
    ARCHITECTURES,
    adopt,
    tile,
    shipped=Shipped("aerial.pt", "unet_small", GROUPS, gsd=0.1, prior={"car": -0.7, "low vegetation": -0.5}),
)
