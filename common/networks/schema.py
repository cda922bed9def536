"""What a checkpoint of ours must hold, field by field: a damaged or made-up file ends in a line, before it is used.

A table names each field's check; `RULES` are what fields must fulfil together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SHOWN = 60
"""Characters of a wrong value that a message shows."""
MOST_CLASSES = 255
DEEPEST = 6
HISTORY = {"epoch", "lr", "train_loss", "val_loss", "miou"}
"""Columns that every epoch has."""


class Check(NamedTuple):
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _is_whole(value: object, low: int = 0, high: int = 2**53) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_plain(value: object, depth: int = 0) -> bool:
    """Nothing, a truth value, number or text, or a list or mapping (by text) of such."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and _is_plain(list(value.values()), depth)
    if isinstance(value, (list, tuple)):
        return depth < DEEPEST and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_numbers(value: object, low: float = -math.inf) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_finite(v) and v >= low for v in value)


def _is_palette(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_whole(index, 0, 255)
        and isinstance(color, (list, tuple))
        and len(color) == 3
        and all(_is_whole(part, 0, 255) for part in color)
        for index, color in value.items()
    )


def _is_normalization(value: object) -> bool:
    if not isinstance(value, dict) or not _is_plain(value) or ("mean" in value) != ("std" in value):
        return False
    mean, std, spread = value.get("mean", [0.0]), value.get("std", [1.0]), value.get("range", [0, 1])
    ranged = isinstance(spread, str) or (_are_numbers(spread) and len(spread) == 2 and spread[0] < spread[1])
    ranged = ranged and _are_names(value.get("range_types", []))
    return ranged and _are_numbers(mean) and _are_numbers(std, 1e-6) and len(mean) == len(std)


def _is_loss(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"terms", "label_smoothing", "gamma", "class_weights"}:
        return False
    weights = value.get("class_weights")
    return (
        isinstance(value.get("terms", ""), str)
        and _is_number(value.get("label_smoothing", 0), 0, 1)
        and _is_number(value.get("gamma", 0), 0, 100)
        and (weights is None or _are_numbers(weights, 0))
    )


def _is_history(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == value[0].keys() >= HISTORY
        and all(isinstance(name, str) and (cell is None or _is_finite(cell)) for name, cell in row.items())
        for row in value
    )


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and set(keys) <= value.keys()


TEXT = Check("a text", lambda v: isinstance(v, str) and len(v) < 4096)
NAME = Check("a name", lambda v: isinstance(v, str) and 0 < len(v) < 100)
PLAIN = Check("plain values by name", lambda v: isinstance(v, dict) and _is_plain(v))
COUNT = Check("a whole number of at least 0", _is_whole)
SHARE = Check("a number in 0...1", lambda v: _is_number(v, 0, 1))
FINITE = Check("a finite number", _is_finite)
NOT_NAN = Check("a number", lambda v: _is_number(v))

CARD = {
    "task": NAME,
    "arch": NAME,
    "arch_args": PLAIN,
    "classes": Check(
        f"2 to {MOST_CLASSES} different names",
        lambda v: _are_names(v) and 2 <= len(v) <= MOST_CLASSES and len(set(v)) == len(v),
    ),
    "palette": Check("a color of three whole numbers in 0...255 by class index", _is_palette),
    "normalization": Check("mean and std of one length, std above 0, and a range (low, high)", _is_normalization),
    "scale": Check("a number in 0.001...100", lambda v: _is_number(v, 1e-3, 100)),
    "threshold": SHARE,
    "split": Check(
        "lists of ids by part", lambda v: isinstance(v, dict) and _are_names([*v]) and all(map(_are_names, v.values()))
    ),
    "loss": Check("the recipe of a loss", _is_loss),
    "maps": Check("names of further outputs", lambda v: isinstance(v, (list, tuple)) and _are_names(list(v))),
    "gsd": Check("the finest and coarsest metres per pixel", lambda v: _are_numbers(v, 0) and len(v) == 2),
    "looks": Check("one to eight numbers in 0.1...10", lambda v: _are_numbers(v, 0.1) and len(v) <= 8 and max(v) <= 10),
    "reach": COUNT,
    "scores": PLAIN,
    "config": PLAIN,
    "data_root": TEXT,
}
RNG = _has("torch", "cuda", "numpy", "python")
TRAINING = {
    "epoch": COUNT,
    "batch": COUNT,
    "step": COUNT,
    "loss_sum": FINITE,
    "hits": Check(
        "a square of pixel counts, or nothing",
        lambda v: (
            isinstance(v, list)
            and all(isinstance(row, list) and len(row) == len(v) and all(map(_is_whole, row)) for row in v)
        ),
    ),
    "progress": Check("a number of at least 0", lambda v: _is_finite(v) and v >= 0),
    "best_iou": Check("a number in -1...1", lambda v: _is_number(v, -1, 1)),
    "best_without": Check(
        "a list of numbers in 0...1", lambda v: isinstance(v, list) and all(_is_number(each, 0, 1) for each in v)
    ),
    "best_loss": NOT_NAN,
    "epochs_without_better": COUNT,
    "threshold": SHARE,
    "history": Check("a row of numbers for each epoch", _is_history),
    "optimizer": Check("the optimizer's state", _has("state", "param_groups")),
    "schedule": Check(
        "the schedule's state",
        lambda v: _has("best_loss", "bad_epochs", "falls")(v) and all(map(_is_number, v.values())),
    ),
    "scaler": PLAIN,
    "average": Check("averaged weights, or nothing", lambda v: v is None or weights_problem(v) is None),
    "average_updates": COUNT,
    "rng": Check("the state of the random generators", RNG),
    "others_rng": Check("such a state of every further process", lambda v: isinstance(v, list) and all(map(RNG, v))),
}
RULES: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("its palette lacks a class", lambda card: set(range(len(card.classes))) <= card.palette.keys()),
    (
        "its normalization is not of as many bands as the network reads",
        lambda card: len(card.normalization.get("mean", [])) in (0, card.arch_args.get("channels", 3)),
    ),
    (
        "its network has fewer outputs than there are classes",
        lambda card: (
            (outputs := card.arch_args.get("outputs", len(card.classes))) == 1 == len(card.classes) - 1
            or (_is_whole(outputs) and outputs >= len(card.classes))
        ),
    ),
)


def check_table(
    table: Mapping[str, Check], values: object, part: str, path: Path, optional: Collection[str] = ()
) -> None:
    """Check a mapping field by field; what the table does not name is left alone, what is optional may be missing.

    Raises:
        ValueError: it is no mapping, or a field is missing or wrong; names file, part, field and value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"checkpoint {path} is damaged: its {part} is a {type(values).__name__}, not a mapping")
    for name, check in table.items():
        if name not in values:
            if name in optional:
                continue
            raise ValueError(f"checkpoint {path} is damaged: its {part} is incomplete, {name} is missing")
        if not check.holds(values[name]):
            shown = " ".join(repr(values[name])[: SHOWN + 1].split())
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
            raise ValueError(f"checkpoint {path} is damaged: {part} {name} is {shown}, expected {check.expected}")


def check_rules(card: object, path: Path) -> None:
    """Check what the fields of a card must fulfil together.

    Raises:
        ValueError: names the file and the rule.
    """
    for broken, holds in RULES:
        if not holds(card):
            raise ValueError(f"checkpoint {path} is damaged: {broken}")


def weights_problem(state: object) -> str | None:
    """What is wrong with a state dict; None = nothing."""
    if not isinstance(state, Mapping) or not state:
        return f"they are a {type(state).__name__}, not tensors by name"
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}, not a tensor with a name"
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            return f"{name} is no plain tensor of real numbers"
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"{name} claims to be {tuple(value.shape)}, more than the file holds"
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"{name} holds numbers that are not finite"
    return None


def check_weights(state: object, path: Path) -> None:
    """Check a state dict.

    Raises:
        ValueError: it holds something else than dense tensors of finite numbers; names the file and the tensor.
    """
    if problem := weights_problem(state):
        raise ValueError(f"checkpoint {path} is damaged: its weights: {problem}")


def check_fit(build: Callable[[], nn.Module], state: Mapping[str, Tensor], arch: str, path: Path) -> None:
    """Check weights against the shapes of the network they are for, before any memory is taken for it.

    Args:
        build: builds the network; called once, on torch's meta device.
        state: the weights.
        arch: the network's name, for messages.
        path: the checkpoint.

    Raises:
        ValueError: there is no such network, or its tensors have other names or shapes.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # made-up arguments are refused, not commented
            own = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    except Exception as error:  # made-up arguments can fail anywhere in a constructor
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"checkpoint {path} names a network {arch} that cannot be built: {reason}") from error
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in own.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"checkpoint {path} does not fit the network {arch}: {problems[0]}{more}")
