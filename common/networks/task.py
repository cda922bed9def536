"""A task as the commands see it: its name, classes and networks, and how weights that are not ours are recognized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from common.command.cli import say
from common.labels import Color
from common.networks import backbones
from common.networks.checkpoint import (
    ModelCard,
    StateDict,
    check_task,
    is_ours,
    load_checkpoint,
    load_matching,
    newest_checkpoint,
    read_payload,
    read_weights,
)
from common.networks.normalize import normalize
from common.networks.schema import check_fit
from common.networks.shipped import NAME, Shipped, fit_head, renormalized
from common.samples import SegmentationData

BANDS = 3
"""Of the pictures that the aerial network which ships reads."""
SEEN = 8
"""Samples that a head is fitted on."""


class Backbone(NamedTuple):
    """The part of a network that ImageNet weights exist for; a network that has one offers it as ``backbone``."""

    module: nn.Module
    name: str
    """Of the published network, such as ``resnet18``."""
    stem: str = "conv1.weight"
    """Key of the first layer's filters, which are adapted to the number of input channels."""


def load_whole(model: nn.Module, path: Path) -> str:
    """Load the weights of a file into a network as far as their shapes fit; what was loaded, as a phrase.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is of another network.
    """
    return load_matching(model, read_weights(path))


@dataclass(frozen=True)
class Task:
    """What the shared commands need to know about a task."""

    name: str
    """Of its folder."""
    classes: list[str]
    """Names by index."""
    palette: dict[int, Color]
    """RGB display color of each class index."""
    architectures: Mapping[str, Callable[..., nn.Module]]
    """Networks by the name of ``--arch``; the first has a backbone."""
    adopt: Callable[[StateDict], tuple[ModelCard, StateDict] | None]
    """Recognizes a state dict that is not ours: a card and the weights that belong to the network, or None.

    Raises ValueError where it is known but of no use to the task."""
    tile: int | Callable[[ModelCard], int] = 512
    """Side of the tiles of large images in the image's pixels, or a function that finds it for a network."""
    published: Callable[[str], StateDict] = backbones.imagenet_state
    """ImageNet weights by the name of a `Backbone`."""
    load_weights: Callable[[nn.Module, Path], str] = load_whole
    """Loads the file of ``--weights PATH`` into a network and says what was loaded."""
    shipped: Shipped | None = None
    """What the task takes from the weights that ship."""

    def build(self, arch: str, **arch_args: Any) -> nn.Module:  # noqa: ANN401 - those of the network
        """Build a network by name.

        Raises:
            ValueError: the name or an argument is unknown.
        """
        if arch not in self.architectures:
            raise ValueError(f"unknown network '{arch}'; known are {', '.join(self.architectures)}")
        try:
            return self.architectures[arch](**arch_args)
        except TypeError as error:
            raise ValueError(f"network {arch}: {error}") from error

    def card(self, arch: str, arch_args: dict[str, Any], **fields: Any) -> ModelCard:  # noqa: ANN401 - the card's
        """A card of one of this task's networks."""
        own = {"classes": self.classes, "palette": self.palette}
        return ModelCard(self.name, arch, arch_args, **{**own, **fields})

    def initialize(
        self, model: nn.Module, weights: str, card: ModelCard | None = None, samples: SegmentationData | None = None
    ) -> None:
        """Set a network's initial weights in place.

        Args:
            model: the network.
            weights: ``none``, ``imagenet`` (its backbone's), ``shipped``, or a checkpoint's path.
            card: of the network, and
            samples: that it will learn from: on some of them the head of what ships, which has classes of its own, is
                fitted to the task's. Without them such a head stays as it is.

        Raises:
            ValueError: the network has no such backbone, the download failed, or the checkpoint does not fit.
            FileNotFoundError: the checkpoint does not exist.
        """
        if weights == "none":
            return
        if weights == NAME:
            say(f"weights: {self._load_shipped(model, card, samples)}")
            return
        if weights != "imagenet":
            say(f"weights: {self.load_weights(model, Path(weights))} from {weights}")
            return
        backbone: Backbone | None = getattr(model, "backbone", None)
        if backbone is None:
            raise ValueError(
                "--weights imagenet needs a pretrained encoder, which this network lacks: "
                f"use --arch {next(iter(self.architectures))}, or --weights none"
            )
        backbones.load_encoder(backbone.module, self.published(backbone.name), stem=backbone.stem)

    def _load_shipped(self, model: nn.Module, card: ModelCard | None, samples: SegmentationData | None) -> str:
        shipped = self._shipped()
        file, state, _ = load_checkpoint(shipped.path)
        fresh = [key for key in state if shipped.groups and key.startswith("head.")]
        own, images = state, list[torch.Tensor]()
        if fresh and card is not None and card.arch_args.get("channels", BANDS) == BANDS:
            own = renormalized(state, file.normalization, card.normalization)
            if samples is not None and card.classes == self.classes:
                keys = [(number, number) for number in range(min(SEEN, len(samples)))]
                images = [torch.as_tensor(samples[key]["image"]) for key in keys]
        rest = f"fitted to {len(images)} samples" if images else "new and untrained"
        try:
            loaded = load_matching(model, {key: value for key, value in own.items() if key not in fresh}, rest)
        except ValueError as error:
            raise ValueError(
                f"--weights {NAME} fits --arch {shipped.arch} with its widths alone: {error}; "
                "set those, or --weights none"
            ) from error
        if images:
            network = self.build(shipped.arch, **file.arch_args)
            network.load_state_dict(state)
            fit_head(model, network.eval(), shipped.members(file), normalize(torch.stack(images), file.normalization))
        return f"{loaded} from {shipped.path}, which ships"

    def shipped_scale(self, gsd: float) -> float:
        """The multiple of their size at which pictures of so many metres per pixel suit the weights that ship."""
        return load_checkpoint(self._shipped().path)[0].scales_at(gsd)[-1]

    def _shipped(self) -> Shipped:
        if self.shipped is None:
            raise ValueError(f"no weights of {self.name} ship; train some with python {self.name}/train.py")
        return self.shipped

    def checkpoints(self, named: Sequence[Path]) -> list[Path]:
        """The files that ``--checkpoint`` means, said in a line.

        Args:
            named: what it names, ``shipped`` among it; nothing = the newest run's best, else what ships.

        Raises:
            FileNotFoundError: nothing is named, nothing was trained, and nothing ships.
        """
        paths = [self._shipped().path if str(path) == NAME else path for path in named]
        try:
            paths = paths or [newest_checkpoint(self.name)]
        except FileNotFoundError:
            if self.shipped is None:
                raise
            paths = [self.shipped.path]
        ours = self.shipped is not None and self.shipped.path in paths
        note = f" (ships; made from generated scenes alone. Your own: {self.name}/train.py)" if ours else ""
        say(f"checkpoint: {', '.join(map(str, paths))}{note}")
        return paths

    def load(self, path: Path) -> tuple[nn.Module, ModelCard]:
        """Load one of our checkpoints, or the original project's weights, as a network ready for inference.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it holds no network of this task.
        """
        if is_ours(read_payload(path)):
            card, weights, _ = load_checkpoint(path)
            if self.shipped is not None and self.shipped.owns(card):
                card, weights = self.shipped.adapt(card, weights, self.name, self.classes, self.palette)
            check_task(path, card, self.name)
        else:
            state = read_weights(path)
            try:
                adopted = self.adopt(state)
            except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # shapes never seen
                raise ValueError(f"checkpoint {path}: {error}") from error
            if adopted is None:
                keys = ", ".join(list(state)[:4])
                raise ValueError(f"checkpoint {path} holds none of this task's networks (its first keys: {keys})")
            card, weights = adopted
        check_fit(lambda: self.build(card.arch, **card.arch_args), weights, card.arch, path)
        model = self.build(card.arch, **card.arch_args)
        model.load_state_dict(weights)
        return model.eval(), card

    def tile_of(self, card: ModelCard, scale: float | None = None) -> int:
        """Side of the tiles that suits a network which reads images at ``scale`` (None = the network's own)."""
        if isinstance(self.tile, int):
            return self.tile
        return self.tile(card if scale is None else replace(card, scale=scale))
