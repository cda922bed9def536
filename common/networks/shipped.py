"""The weights that ship with the project: one file for nuclei, one for pictures from the air.

The aerial network tells the classes of the generated world apart; every task makes its own classes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.networks.checkpoint import ModelCard

NAME = "shipped"
"""What ``--checkpoint`` and ``--weights`` call them."""
FOLDER = Path(__file__).resolve().parents[2] / "weights"


@dataclass(frozen=True)
class Shipped:
    """What a task takes from a file that ships."""

    file: str
    """In ``weights/``."""
    groups: Sequence[Sequence[str]] = ()
    """For each of the task's classes the file's classes that it is made of; none = the file's are the task's."""

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / self.file

    def card(self, card: ModelCard, task: str, classes: Sequence[str], palette: Mapping[int, tuple[int, int, int]],
             binary_outputs: int = 2) -> ModelCard:  # fmt: skip
        """The file's card as the task's own."""
        if not self.groups:
            return card
        groups = [[card.classes.index(name) for name in group] for group in self.groups]
        arch_args = {**card.arch_args, "outputs": len(groups), "groups": groups}
        return replace(card, task=task, arch_args=arch_args, classes=list(classes), palette=dict(palette))
