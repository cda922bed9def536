"""What this task is: its classes and networks, and how the original notebook's weights are recognized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, StateDict
from common.networks.shipped import Shipped
from common.networks.task import Task
from hela_nuclei.model import ARCHITECTURES, recognize


def adopt(state: StateDict) -> tuple[ModelCard, StateDict] | None:
    """A card for the original notebook's weights (or our own without one); the unused classifier is dropped.

    Raises:
        ValueError: they read or predict something else than this task's networks.
    """
    weights = {key: value for key, value in state.items() if not key.startswith("encoder.fc.")}
    found = recognize(weights)
    if found is None:
        return None
    channels, outputs = found[1].get("channels", 1), found[1].get("outputs", 1)
    if channels != 1 or outputs not in (1, 2):
        raise ValueError(f"a network of {channels} channels and {outputs} outputs; 1 and 1 are needed")
    return TASK.card(found[0], {**found[1], "pad_input": False}, loss=LossRecipe("bce")), weights


@dataclass(frozen=True)
class NucleiTask(Task):
    """This task: cards of old do not say that a network's second output is the distance map."""

    def load(self, path: Path) -> tuple[nn.Module, ModelCard]:
        """Load a network and its complete card.

        Raises:
            FileNotFoundError, ValueError: see `Task.load`; or it reads or predicts something else.
        """
        network, card = super().load(path)
        arguments = {"channels": 1, "outputs": 1, **card.arch_args}
        maps = ("distance",) if arguments["outputs"] == 2 else card.maps
        if arguments["channels"] != 1 or len(card.classes) != 2 or arguments["outputs"] != 1 + len(maps):
            raise ValueError(
                f"checkpoint {path}: a network of {arguments['channels']} channels, {arguments['outputs']} outputs and "
                f"{len(card.classes)} classes; 1, 1 (or 2 with a distance map) and 2 are needed"
            )
        return network, replace(card, arch_args=arguments, maps=maps)


TASK = NucleiTask(
    "hela_nuclei",
    ["background", "nucleus"],
    {0: (0, 0, 0), 1: (253, 231, 37)},
    ARCHITECTURES,
    adopt,
    tile=1536,
    shipped=Shipped("nuclei.pt", "unet"),
)
"""Its tiles are larger than a HeLa frame, so that one is predicted in one go."""
