"""Checkpoints: plain tensors and plain Python values, written atomically and read without unpickling code.

A checkpoint carries everything inference needs (network name and arguments, classes, palette, normalization, scale, threshold, the ids of each
split), so a file can be used without the run folder it came from. ``python -m common.checkpoint FILE`` prints what one is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

FORMAT = 1
WRAPPERS = ("model_state_dict", "state_dict", "model")
StateDict = dict[str, Tensor]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it over ``path``.

    The temporary name keeps the suffix, since many writers choose their format by it. After an error nothing is left behind and
    a former ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says about its network: all that inference needs besides the weights."""

    task: str
    """Name of the task folder, such as ``hela_nuclei``."""
    arch: str
    """Name by which the task's ``build_model`` knows the network."""
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
    scores: dict[str, Any] = field(default_factory=dict)
    """Validation scores when the weights were saved."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved training configuration."""
    data_root: str = ""
    """Where the training data lay, so that evaluation can tell whether a root is another one."""


def save_checkpoint(path: Path, card: ModelCard, model: Mapping[str, Tensor], training: Mapping[str, Any] | None = None) -> None:
    """Write one checkpoint atomically; ``training`` is the state that only resuming needs."""
    payload = {"format": FORMAT, "card": asdict(card), "model": dict(model)}
    if training is not None:
        payload["training"] = dict(training)
    with atomic_path(path) as temporary:
        torch.save(payload, temporary)


def read_payload(path: Path) -> dict[str, Any]:
    """Read any ``torch.save`` file of tensors and plain values onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged, or holds objects that only unsafe unpickling could build.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give the path of a .pt file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "unsafe pickle")
        raise ValueError(f"checkpoint {path} is refused: it holds more than tensors and plain values ({reason})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}; it is damaged or no checkpoint") from error
    if not isinstance(payload, dict):
        raise ValueError(f"checkpoint {path} holds a {type(payload).__name__}, not a dictionary of tensors")
    return payload


def load_checkpoint(path: Path, task: str | None = None) -> tuple[ModelCard, StateDict, dict[str, Any]]:
    """Read one of our checkpoints: its card, the weights, and the training state (empty if it has none).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of ours, or belongs to another task.
    """
    payload = read_payload(path)
    if "card" not in payload or "model" not in payload:
        raise ValueError(f"checkpoint {path} is not one of this project's (no 'card'); pass it to --weights if it holds weights alone")
    if payload.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} has format {payload.get('format')}, this version reads {FORMAT}")
    known = {f.name for f in fields(ModelCard)}
    card = ModelCard(**{key: value for key, value in payload["card"].items() if key in known})
    if task is not None and card.task != task:
        raise ValueError(f"checkpoint {path} belongs to the task {card.task}, not to {task}; use {card.task}/infer.py")
    return card, cast(StateDict, payload["model"]), payload.get("training", {})


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
        raise ValueError(f"no weights found: the file's keys are {', '.join(map(str, list(payload)[:8]))}")
    return state


def read_weights(path: Path) -> StateDict:
    """The weights of any checkpoint, ours or another project's."""
    payload = read_payload(path)
    return cast(StateDict, payload["model"]) if is_ours(payload) else foreign_state_dict(payload)


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Load weights by name in place; tensors of another shape (a head for other classes) keep their random start.

    Returns:
        What was loaded and what was not, as a phrase.

    Raises:
        ValueError: fewer than half of the network's tensors have a partner.
    """
    own = model.state_dict()
    matching = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if len(matching) < len(own) / 2:
        raise ValueError(f"the checkpoint fits only {len(matching)} of the network's {len(own)} tensors; it belongs to another network")
    model.load_state_dict({**own, **matching})
    fresh = [key for key in own if key not in matching]
    return f"{len(matching)} tensors" + (f", new and untrained: {', '.join(fresh)}" if fresh else "")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, the first 16 hexadecimal digits: provenance of predictions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def describe(path: Path) -> str:
    """A few lines that say what a checkpoint is."""
    payload = read_payload(path)
    if not is_ours(payload):
        state = foreign_state_dict(payload)
        return f"{path}: weights of another project, {len(state)} tensors, {sum(v.numel() for v in state.values()) / 1e6:.3f} M values"
    card, model, training = load_checkpoint(path)
    lines = [
        f"{path}  (sha256 {file_hash(path)})",
        f"task           {card.task}",
        f"network        {card.arch} {card.arch_args}, {sum(v.numel() for v in model.values()) / 1e6:.3f} M values",
        f"classes        {', '.join(card.classes)}",
        f"threshold      {card.threshold:.3f}",
        f"scale          {card.scale:g}",
        f"normalization  {card.normalization}",
        "split          " + ", ".join(f"{part} {len(ids)}" for part, ids in card.split.items()),
        "scores         " + ", ".join(f"{k} {v:.4f}" for k, v in card.scores.items() if isinstance(v, float)),
        f"can resume     {'yes, after epoch ' + str(training['epoch']) if training else 'no (best weights only)'}",
    ]
    return "\n".join(lines)


def _numpy_scalars() -> list[Any]:
    """Numpy scalars that older projects leave in their files; harmless data, allow-listed by name."""
    kinds: list[Any] = [np.dtype, np.core.multiarray.scalar] if not hasattr(np, "_core") else [np.dtype, np._core.multiarray.scalar]  # type: ignore[attr-defined]
    return [*kinds, *{type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")}]


def main() -> int:
    """Print what the checkpoints named on the command line are."""
    parser = argparse.ArgumentParser(description="Print what a checkpoint is.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args().files:
        try:
            print(describe(path))
        except (ValueError, FileNotFoundError) as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
