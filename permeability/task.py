"""What this task is: its classes and networks, and how weights of segmentation-models-pytorch are recognized."""

from __future__ import annotations

from common.networks.checkpoint import ModelCard, StateDict
from common.networks.shipped import Shipped
from common.networks.task import Task
from common.networks.unet_small import UNetSmall
from permeability.labels import CLASSES, PALETTE
from permeability.model import ARCHITECTURES, recognize
from permeability.samples import NORMALIZATION
from permeability.weights import load_weights, published_state


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for weights as the source wrote them (its mean and standard deviation), or for our own without one.

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
    return TASK.card(arch, arch_args, normalization=dict(NORMALIZATION)), state


GROUPS = (("impervious", "building", "car", "clutter"), ("low vegetation", "tree", "water", "soil"))
"""The aerial network's classes as sealed and permeable ground."""
TASK = Task(
    "permeability",
    CLASSES,
    PALETTE,
    {**ARCHITECTURES, "unet_small": UNetSmall},
    adopt,
    published=published_state,
    load_weights=load_weights,
    shipped=Shipped(
        "aerial.pt",
        "unet_small",
        GROUPS,
        looks=(2.0, 1.0),
    ),
)
