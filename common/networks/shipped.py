"""The weights that ship with the project: one file for nuclei, one for pictures from the air.

The aerial network tells the classes of the generated world apart; every task makes its own classes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.labels import Color
from common.losses import LossRecipe
from common.networks.checkpoint import ModelCard, StateDict

NAME = "shipped"
"""What ``--checkpoint`` and ``--weights`` call them."""
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


BUILDINGS = Shipped(
    "aerial.pt",
    "unet_small",
    (("impervious", "low vegetation", "tree", "car", "clutter", "water", "soil"), ("building",)),
    looks=(1.0, 0.7, 0.5),
    threshold=0.36,
)


def renormalized(state: StateDict, before: Mapping[str, Any], after: Mapping[str, Any]) -> StateDict:
    """Weights of a `UNetSmall` that say of images of one normalization what they said of those of another.

    What the normalizations differ by becomes part of the first convolution and the BatchNorm behind it; only where
    that convolution reads padding, at the edge of the image, something else comes out.

    Args:
        state: the weights.
        before: what they were trained with (a card's ``mean`` and ``std``, none = values in 0...1).
        after: what images will come with.
    """
    weight, bands = state["stem.0.0.weight"], (1, -1, 1, 1)
    (old, old_std), (new, new_std) = (
        [torch.tensor(each.get(name, [float(name == "std")] * weight.shape[1])).view(bands) for name in ("mean", "std")]
        for each in (before, after)
    )
    shift = (weight.float() * (new - old) / old_std).sum(dim=(1, 2, 3))
    moved = {
        "stem.0.0.weight": weight.float() * new_std / old_std,
        "stem.0.1.running_mean": state["stem.0.1.running_mean"] - shift,
    }
    return {**state, **moved}


@torch.no_grad()
def fit_head(model: nn.Module, file: nn.Module, groups: Sequence[Sequence[int]], images: Tensor) -> None:
    """Let a network that has the body of the file's, but other classes, say these from the start.

    P of a class that is a union of the file's is the sum of theirs. No linear head gives that; this one comes nearest,
    by least squares over the pixels of some images.

    Args:
        model: the network; its ``head`` (of one logit: the second class against the first) is changed in place.
        file: the file's network.
        groups: for each class of the model the file's classes that it is made of.
        images: (N, C, H, W), normalized as the file's network reads them.
    """
    said = file(images)[:, :, ::2, ::2].movedim(1, -1).flatten(0, 2).double()
    unions = torch.stack([said[:, group].logsumexp(1) for group in groups], dim=1)
    weight, bias = model.get_parameter("head.weight"), model.get_parameter("head.bias")
    if len(bias) == 1:
        unions = unions[:, 1:] - unions[:, :1]
    known = torch.cat([said, torch.ones_like(said[:, :1])], dim=1)
    fitted = torch.linalg.lstsq(known, unions, driver="gelsd").solution.T
    scale, shift = fitted[:, :-1], fitted[:, -1]
    weight.copy_((scale @ file.get_parameter("head.weight").flatten(1).double())[..., None, None])
    bias.copy_(scale @ file.get_parameter("head.bias").double() + shift)
