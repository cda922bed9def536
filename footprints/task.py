"""What this task is: its classes and networks, and how the original package's weights are recognized."""

from __future__ import annotations

from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, StateDict
from common.networks.shipped import BUILDINGS
from common.networks.task import Task
from footprints.model import ARCHITECTURES, recognize

SOURCE_THRESHOLD = 0.45
"""What the original project calls a building; its files do not say."""


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for a ``ReFineNet`` of the original package (images / 255), or for our own weights without one.

    Raises:
        ValueError: they predict something else than one class.
    """
    found = recognize(state)
    if found is None:
        return None
    if found[1]["outputs"] != 1:
        raise ValueError(f"it has {found[1]['outputs']} outputs; this task's networks have one, the building's")
    return TASK.card(*found, threshold=SOURCE_THRESHOLD, loss=LossRecipe("bce+dice")), state


TASK = Task(
    "footprints",
    ["background", "building"],
    {0: (0, 0, 0), 1: (230, 60, 40)},
    ARCHITECTURES,
    adopt,
    shipped=BUILDINGS,
)
