"""The weights that ship with the project: one file for nuclei, one for pictures from the air.

The aerial network tells the classes of the generated world apart; every task makes its own classes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.labels import Color
from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard

NAME = "shipped"
"""What ``--checkpoint`` and ``--weights`` call them."""
BUILDINGS = (("impervious", "low vegetation", "tree", "car", "clutter", "water", "soil"), ("building",))
"""The aerial network's classes as background and building."""
FOLDER = Path(__file__).resolve().parents[2] / "weights"


@dataclass(frozen=True)
class Shipped:
    """What a task takes from a file that ships."""

    file: str
    """In ``weights/``."""
    arch: str
    """The task's ``--arch`` that it is of."""
    groups: Sequence[Sequence[str]] = ()
    """For each of the task's classes the file's classes that it is made of; none = the file's are the task's."""
    gsd: float = 0.0
    """Metres per pixel that pictures without georeference are taken to have; 0 = read as they are."""
    looks: tuple[float, ...] = (1.0,)
    """See `ModelCard`."""
    threshold: float = 0.5
    """Two classes: the second one where P is at least this."""

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / self.file

    def owns(self, card: ModelCard) -> bool:
        """Whether a card is that of the file, with all its classes."""
        return bool(self.groups) and card.task == self.path.stem

    def adapt(self, card: ModelCard, task: str, classes: Sequence[str], palette: Mapping[int, Color]) -> ModelCard:
        """The file's card as one of the task's own."""
        groups = [[card.classes.index(name) for name in group] for group in self.groups]
        arch_args = {**card.arch_args, "outputs": len(groups), "groups": groups}
        return replace(
            card,
            task=task,
            arch=self.arch,
            arch_args=arch_args,
            classes=list(classes),
            palette=dict(palette),
            scale=card.scales_at(self.gsd)[-1] if self.gsd else 1.0,
            looks=self.looks,
            threshold=self.threshold,
            loss=LossRecipe(card.loss.terms),
        )
