"""The weights that ship with the project: one file for nuclei, one for pictures from the air.

The aerial network tells the classes of the generated world apart; every task makes its own classes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from common.labels import Color
from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, StateDict
from common.networks.normalize import normalize

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
    prior: Mapping[str, float] = field(default_factory=dict)
    """More classes: what is added to the logits of some of the file's, which the task's pictures show more or less."""

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / self.file

    def members(self, card: ModelCard) -> list[list[int]]:
        """For each of the task's classes the indices of the file's classes that it is made of."""
        return [[card.classes.index(name) for name in group] for group in self.groups]

    def owns(self, card: ModelCard) -> bool:
        """Whether a card is that of the file, with all its classes."""
        return bool(self.groups) and card.task == self.path.stem

    def adapt(
        self, card: ModelCard, weights: StateDict, task: str, classes: Sequence[str], palette: Mapping[int, Color]
    ) -> tuple[ModelCard, StateDict]:
        """The file's card and weights as the task's own."""
        bias = weights["head.bias"] + torch.tensor([self.prior.get(name, 0.0) for name in card.classes])
        arch_args = {**card.arch_args, "outputs": len(self.groups), "groups": self.members(card)}
        own = replace(
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
        return own, {**weights, "head.bias": bias}


@torch.no_grad()
def fit_head(
    model: nn.Module, card: ModelCard, file: nn.Module, own: ModelCard, groups: Sequence[Sequence[int]], images: Tensor
) -> None:
    """Let a network that has the body of the file's, but other classes, say these from the start.

    P of a class that is a union of the file's is the sum of theirs. No linear head gives that; this one comes nearest,
    by least squares over the pixels of some images.

    Args:
        model: the network; its ``head`` (of one logit: the second class against the first) is changed in place.
        card: its card.
        file: the file's network.
        own: the file's card.
        groups: for each class of the model the file's classes that it is made of.
        images: (N, C, H, W), not normalized.
    """

    def look(normalization: Mapping[str, object]) -> Tensor:
        logits: Tensor = file(normalize(images, normalization))
        return logits[:, :, ::2, ::2].movedim(1, -1).flatten(0, 2).double()

    expected = {**card.normalization, **own.normalization}
    true = look(expected)
    unions = torch.stack([true[:, group].logsumexp(1) for group in groups], dim=1)
    weight, bias = model.get_parameter("head.weight"), model.get_parameter("head.bias")
    if len(bias) == 1:
        unions = unions[:, 1:] - unions[:, :1]
    seen = true if card.normalization == expected else look(card.normalization)
    known = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    fitted = torch.linalg.lstsq(known, unions, driver="gelsd").solution.T
    scale, shift = fitted[:, :-1], fitted[:, -1]
    weight.copy_((scale @ file.get_parameter("head.weight").flatten(1).double())[..., None, None])
    bias.copy_(scale @ file.get_parameter("head.bias").double() + shift)
