"""Checkpoints: plain tensors and plain Python values, written atomically and read without unpickling code.

A checkpoint carries everything inference needs (network name and arguments, classes, palette, normalization, scale,
threshold, the ids of each split), so a file can be used without the run folder it came from.
``python common/checkpoint.py FILE`` prints what one is.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.files import atomic_path, file_hash
from common.losses import LossRecipe
from common.networks.schema import CARD, TRAINING, check_rules, check_table, check_weights

RUNS = Path("runs")
FORMAT = 1
WRAPPERS = ("model_state_dict", "state_dict", "model")
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says about its network: all that inference needs besides the weights."""

    task: str
    """Name of the task folder, such as ``hela_nuclei``."""
    arch: str
    """Name by which the `Task` knows the network."""
    arch_args: dict[str, Any]
    """Arguments of the network: input channels, number of outputs, widths."""
    classes: list[str]
    """Class names by index."""
    palette: dict[int, tuple[int, int, int]]
    """RGB display color of each class index."""
    normalization: dict[str, Any] = field(default_factory=dict)
    """How images become network input; the task defines the keys."""
    scale: float = 1.0
    """Size at which images were seen in training, relative to the files' own."""
    threshold: float = 0.5
    """Two classes: foreground iff P >= threshold."""
    split: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the train, val and test part."""
    loss: LossRecipe = field(default_factory=LossRecipe)
    """The loss that was trained, which evaluation reports."""
    maps: tuple[str, ...] = ()
    """Further outputs after the classes' logits, such as ``distance``."""
    scores: dict[str, Any] = field(default_factory=dict)
    """Validation scores when the weights were saved."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved training configuration."""
    gsd: tuple[float, float] = (0.0, 0.0)
    """Finest and coarsest ground resolution of the training, metres per pixel of the network's input; 0 = unknown."""
    looks: tuple[float, ...] = (1.0,)
    """An image of such a resolution is read at these multiples of its size, finest first, and they are averaged."""
    reach: int = 0
    """How far the network sees, pixels of its input (`common.networks.reach`); 0 = not measured."""
    data_root: str = ""
    """Where the training data lay, so that evaluation can tell whether a root is another one."""

    def scales_at(self, gsd: float) -> tuple[float, ...]:
        """The scales at which an image of so many metres per pixel comes within the training's ground resolutions.

        A finer image is read at the finest of them, for detail, and at the coarsest, for context, and at the looks that
        are smaller yet: together that is less than the image itself, and better than any of them.
        """
        finest, coarsest = self.gsd
        if not coarsest:
            return (self.scale,)
        if gsd < finest:
            return gsd / finest, *(look * gsd / coarsest for look in self.looks if look <= 1)
        return tuple(look * max(1.0, gsd / coarsest) for look in self.looks)


OPTIONAL = {f.name for f in fields(ModelCard) if f.default is not MISSING or f.default_factory is not MISSING}
"""What a card may lack."""


def save_checkpoint(
    path: Path, card: ModelCard, model: Mapping[str, Tensor], training: Mapping[str, Any] | None = None
) -> None:
    """Write one checkpoint atomically; ``training`` is the state that only resuming needs."""
    payload = {"format": FORMAT, "card": asdict(card), "model": dict(model)}
    if training is not None:
        payload["training"] = dict(training)
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(payload, file)
        except RuntimeError as error:  # torch's writer stumbles over its own position where the system said why
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise


def read_payload(path: Path) -> dict[str, Any]:
    """Read any ``torch.save`` file of tensors and plain values onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged, or holds objects that only unsafe unpickling could build.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give the path of a .pt file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle formats
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail anywhere in the unpickler
        reason = " ".join(str(error).split()) or type(error).__name__
        unsafe = re.search(r"GLOBAL ([\w.]+)", reason)
        if unsafe:
            raise ValueError(
                f"checkpoint {path} is refused: it holds more than tensors and plain values ({unsafe[1]}), "
                "which could run code when loaded; save its weights alone"
            ) from error
        reason = "not written by torch.save" if "weights_only" in reason else reason[:120]
        raise ValueError(f"checkpoint {path} cannot be read: it is damaged or no checkpoint ({reason})") from error
    if not isinstance(payload, dict):
        raise ValueError(f"checkpoint {path} holds a {type(payload).__name__}, not a dictionary of tensors")
    return payload


def load_checkpoint(path: Path, task: str | None = None) -> tuple[ModelCard, StateDict, dict[str, Any]]:
    """Read one of our checkpoints: its card, the weights, and the training state (empty if it has none).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of ours, is damaged (see `common.networks.schema`), or belongs to another task.
    """
    payload = read_payload(path)
    if "card" not in payload or "model" not in payload:
        raise ValueError(
            f"checkpoint {path} is not one of this project's (it has no 'card'); weights alone are for --weights"
        )
    if payload.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} has format {payload.get('format')}, this version reads {FORMAT}")
    found = payload["card"]
    if isinstance(found, dict) and isinstance(found.get("config"), dict) and "loss" not in found:
        found = {**found, "loss": asdict(LossRecipe.of_config(found["config"]))}  # written before cards named it
    check_table(CARD, found, "card", path, optional=OPTIONAL)
    values = {f.name: found[f.name] for f in fields(ModelCard) if f.name in found}
    card = ModelCard(**{**values, "loss": LossRecipe(**values.get("loss", {}))})
    check_rules(card, path)
    if task is not None:
        check_task(path, card, task)
    check_weights(payload["model"], path)
    training = payload.get("training", {})
    if "training" in payload:
        check_table(TRAINING, training, "training state", path, optional=("hits", "best_without", "others_rng"))
    return card, payload["model"], training


def check_task(path: Path, card: ModelCard, task: str) -> None:
    """Refuse another task's checkpoint.

    Raises:
        ValueError: it is one.
    """
    if card.task != task:
        raise ValueError(f"checkpoint {path} belongs to the task {card.task}, not to {task}; use {card.task}/infer.py")


def is_ours(payload: Mapping[str, Any]) -> bool:
    """Tell one of our checkpoints from a bare state dict."""
    return "card" in payload and "model" in payload


def foreign_state_dict(payload: Mapping[str, Any]) -> StateDict:
    """Unwrap the weights of another project's file: nested under a usual key or not, ``module.`` prefixes removed.

    Raises:
        ValueError: no dictionary of tensors is found.
    """
    inner: Any = payload
    for key in WRAPPERS:
        if isinstance(inner, Mapping) and isinstance(inner.get(key), Mapping):
            inner = inner[key]
    state = {str(k).removeprefix("module."): v for k, v in inner.items() if isinstance(v, Tensor)}
    if not state:
        keys = ", ".join(map(str, list(payload)[:8])) or "none"
        raise ValueError(f"no weights found in the checkpoint; its keys: {keys}")
    return state


def read_weights(path: Path) -> StateDict:
    """The weights of any checkpoint, ours or another project's.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no weights.
    """
    payload = read_payload(path)
    if is_ours(payload):
        return load_checkpoint(path)[1]
    try:
        state = foreign_state_dict(payload)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_weights(state, path)
    return state


def load_matching(model: nn.Module, state: Mapping[str, Tensor], rest: str = "new and untrained") -> str:
    """Load weights by name in place; tensors of another shape (a head for other classes) keep their random start.

    Args:
        model: the network.
        state: weights by name.
        rest: what to call tensors without a partner.

    Returns:
        What was loaded and what was not, as a phrase.

    Raises:
        ValueError: fewer than half of the network's tensors have a partner.
    """
    own = model.state_dict()
    matching = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if len(matching) < len(own) / 2:
        raise ValueError(
            f"the checkpoint fits only {len(matching)} of the network's {len(own)} tensors; it is of another network"
        )
    model.load_state_dict({**own, **matching})
    fresh = [key for key in own if key not in matching]
    return f"{len(matching)} tensors" + (f", {rest}: {', '.join(fresh)}" if fresh else "")


def describe(path: Path) -> str:
    """A few lines that say what a checkpoint is."""
    if not is_ours(read_payload(path)):
        state = read_weights(path)
        millions = sum(v.numel() for v in state.values()) / 1e6
        return f"{path}: weights of another project, {len(state)} tensors, {millions:.3f} M values"
    card, model, training = load_checkpoint(path)
    lines = [
        f"{path}  (sha256 {file_hash(path)})",
        f"task           {card.task}",
        f"network        {card.arch} {card.arch_args}, {sum(v.numel() for v in model.values()) / 1e6:.3f} M values",
        f"classes        {', '.join(card.classes)}",
        f"threshold      {card.threshold:.3f}",
        f"scale          {card.scale:g}",
        f"loss           {card.loss.build()}",
        f"normalization  {card.normalization}",
        "split          " + ", ".join(f"{part} {len(ids)}" for part, ids in card.split.items()),
        "scores         " + ", ".join(f"{k} {v:.4f}" for k, v in card.scores.items() if isinstance(v, float)),
        f"can resume     {'yes, after epoch ' + str(training['epoch']) if training else 'no (best weights only)'}",
    ]
    return "\n".join(lines)


def newest_checkpoint(task: str) -> Path:
    """The newest ``best_iou.pt`` of a task; demo runs only if there is no other.

    Raises:
        FileNotFoundError: nothing was trained yet.
    """
    found = sorted((RUNS / task).glob("*/best_iou.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    own = [path for path in found if not is_demo_run(path)]
    if not found:
        raise FileNotFoundError(
            f"no trained network under {RUNS / task}; train one with python {task}/train.py, or give --checkpoint FILE"
        )
    return (own or found)[0]


def is_demo_run(checkpoint: Path) -> bool:
    """Whether a checkpoint lies in the run folder of a built-in demo."""
    return checkpoint.parent.name.startswith("demo-")


def _numpy_scalars() -> list[Any]:
    """Numpy scalars that older projects leave in their files; harmless data, allow-listed by name."""
    kinds = {type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "bool")}
    scalar = np.float64(0).__reduce__()[0]  # numpy 1 and 2 keep this function in modules of different names
    return [np.dtype, *kinds, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]
