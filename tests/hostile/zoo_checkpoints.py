"""Checkpoints, each broken in one way."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.hostile.zoo import ANY, BAD, Make, Specimen

Payload = dict[str, Any]
DEEP_LIST: list[Any] = []
for _ in range(300):
    DEEP_LIST = [DEEP_LIST]

WRONG: dict[str, tuple[Any, ...]] = {
    "task": (None, 3, [], "", "nowhere", "../rooftops"),
    "arch": (None, 3, [], "nothing", "__init__"),
    "arch_args": (None, [], "text", {"nothing": 1}, {1: 2}, DEEP_LIST),
    "classes": (None, [], ["one"], "ab", [f"c{n}" for n in range(300)], ["a", "a"], [1, 2], ["a", None], {"a": 1}),
    "palette": (None, [], "text", {}, {0: "red", 1: "blue"}, {0: (1, 2), 1: (3, 4)}, {0: (0, 0, 0), 1: (300, -1, 0)},
                {"0": (0, 0, 0), "1": (1, 1, 1)}, {0: (0, 0, math.nan), 1: (1, 1, 1)}),
    "normalization": (None, [], "text", {"mean": [0.5, 0.5], "std": [1, 1]}, {"mean": [0.5] * 3},
                      {"mean": [0.5] * 3, "std": [0.0] * 3}, {"mean": [math.nan] * 3, "std": [1.0] * 3},
                      {"mean": "abc", "std": "abc"}, {"range": [1, 0]}, {"range": [0, math.inf]}, {"range": [1]},
                      {"mean": [0.5] * 3, "std": [-1.0] * 3}),
    "scale": (None, "1", [], 0, 0.0, -1.0, math.nan, math.inf, 1e-9, 1e9, True),
    "threshold": (None, "0.5", [], math.nan, 2, -0.1, math.inf),
    "split": (None, [], "text", {"train": None}, {"train": "abc"}, {"train": [1, 2]}, {3: []}),
    "scores": (None, [], "text"),
    "config": (None, [], "text"),
    "data_root": (None, 3, []),
}  # fmt: skip
"""Values that fields of the card must not have."""
GIANTS: tuple[dict[str, Any], ...] = (
    {"widths": [10**6] * 3}, {"widths": [2**40]}, {"widths": []}, {"widths": [0, 0, 0]}, {"widths": [-4, 4, 8]},
    {"widths": [4.5, 4, 8]}, {"widths": "448"}, {"widths": [4] * 500}, {"outputs": 10**7}, {"outputs": 0},
    {"outputs": -1}, {"outputs": 7}, {"outputs": "1"}, {"outputs": None}, {"channels": 10**7}, {"channels": 0},
    {"channels": 5}, {"widths": [math.nan] * 3}, {"widths": None}, {"widths": [4, 4, 8, 8]},
)  # fmt: skip
"""Arguments of a small U-Net that are not those of its weights."""


def changed(path: Path, change: Callable[[Payload], Any]) -> Make:
    """A copy of a checkpoint after a change in place (or what the change returns)."""

    def write(target: Path) -> None:
        payload = copy.deepcopy(torch.load(path, weights_only=True))
        result = change(payload)
        torch.save(payload if result is None else result, target)

    return write


def card(key: str, value: object) -> Callable[[Payload], None]:
    """Set a field of the card."""
    return lambda payload: payload["card"].__setitem__(key, value)


def without(*keys: str) -> Callable[[Payload], None]:
    """Remove a key, by its path."""

    def change(payload: Payload) -> None:
        for key in keys[:-1]:
            payload = payload[key]
        del payload[keys[-1]]

    return change


def arguments(values: dict[str, Any]) -> Callable[[Payload], None]:
    """Set arguments of the network."""
    return lambda payload: payload["card"]["arch_args"].update(values)


def weights(change: Callable[[torch.Tensor], Any]) -> Callable[[Payload], None]:
    """Change the first tensor of the weights."""

    def first(payload: Payload) -> None:
        key = next(iter(payload["model"]))
        payload["model"][key] = change(payload["model"][key])

    return first


def lie_about_storage(path: Path) -> Make:
    """A tensor of 2**40 values over a storage of a few bytes."""

    def write(target: Path) -> None:
        payload = torch.load(path, weights_only=True)
        key = next(iter(payload["model"]))
        payload["model"][key] = torch.empty(1).expand(2**20, 2**20)
        torch.save(payload, target)

    return write


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def pickled(make_value: Callable[[Path], object], *, old: bool = False) -> Make:
    """Whatever it is, as torch.save or the plain pickle writes it."""

    def write(target: Path) -> None:
        value = make_value(target.with_name("code-ran"))
        if old:
            target.write_bytes(pickle.dumps(value))
        else:
            torch.save(value, target)

    return write


def zipped(path: Path, entry: str, change: Callable[[bytes], bytes]) -> Make:
    """A checkpoint of which one entry of the archive is changed, with a right checksum."""

    def write(target: Path) -> None:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as made:
            for info in source.infolist():
                content = source.read(info)
                made.writestr(info.filename, change(content) if info.filename.endswith(entry) else content)

    return write


def spread(path: Path, inner: bytes) -> Make:
    """Bytes of another kind in place of the file."""
    return lambda target: target.write_bytes(inner)


def of_card(path: Path) -> Iterator[Specimen]:
    """Wrong values of every field of the card, and missing fields."""
    for key, values in WRONG.items():
        for number, value in enumerate(values):
            yield Specimen(f"card_{key}_{number}.pt", changed(path, card(key, value)), BAD)
    for key in ("task", "arch", "arch_args", "classes", "palette"):
        yield Specimen(f"without_{key}.pt", changed(path, without("card", key)), BAD)
    yield Specimen("unknown_key.pt", changed(path, card("future", 1)), ANY)
    for number, values in enumerate(GIANTS):
        yield Specimen(f"network_{number}.pt", changed(path, arguments(values)), BAD)


def of_payload(path: Path) -> Iterator[Specimen]:
    """What is wrong around the card."""
    for key in ("card", "model", "format"):
        bare = ANY if key == "card" else BAD  # weights without a card are known by their names
        yield Specimen(f"without_{key}.pt", changed(path, without(key)), bare)
        for number, value in enumerate((None, [], "text", 7, {1: 2})):
            yield Specimen(f"{key}_{number}.pt", changed(path, lambda p, k=key, v=value: p.__setitem__(k, v)), BAD)
    yield Specimen("format_bool.pt", changed(path, lambda p: p.__setitem__("format", True)), ANY)
    whole: dict[str, Callable[[torch.Tensor], Any]] = {
        "nan": lambda t: t * math.nan, "infinite": lambda t: t + math.inf, "integer": lambda t: t.to(torch.int64),
        "complex": lambda t: t.to(torch.complex64), "half": lambda t: t.half(), "list": lambda t: t.tolist(),
        "none": lambda t: None, "shape": lambda t: t[:1], "sparse": lambda t: t.to_sparse(), "empty": lambda t: t[:0],
        "meta": lambda t: t.to("meta"), "strided": lambda t: t.transpose(0, -1),
    }  # fmt: skip
    for name, change in whole.items():
        expect = ANY if name in ("half", "integer", "sparse") else BAD
        yield Specimen(f"weights_{name}.pt", changed(path, weights(change)), expect)
    yield Specimen("weights_expanded.pt", lie_about_storage(path), BAD)
    yield Specimen("weights_keys.pt", changed(path, lambda p: p["model"].update({5: torch.zeros(1)})), BAD)
    yield Specimen("training_text.pt", changed(path, lambda p: p.__setitem__("training", "text")), ANY)
    for name, value in (("list", [1]), ("tensor", torch.zeros(3)), ("text", "x"), ("none", None), ("empty", {})):
        yield Specimen(f"only_{name}.pt", changed(path, lambda p, v=value: [v] if v is None else v), BAD)


def of_bytes(path: Path, other: Path) -> Iterator[Specimen]:
    """Files that are no checkpoint, or not whole, or more than a checkpoint."""
    content = path.read_bytes()
    cuts = {f"cut_{n}": content[: len(content) * n // 10] for n in (1, 5, 9)} | {"cut_last": content[:-1]}
    kinds = {"empty": b"", "text": b"hello\n", "zeros": bytes(1000), "zip": b"PK\x05\x06" + bytes(18)} | cuts
    for name, inner in kinds.items():
        yield Specimen(f"{name}.pt", spread(path, inner), BAD)
    yield Specimen("code.pt", pickled(Code), BAD)
    yield Specimen("code_old.pt", pickled(Code, old=True), BAD)
    yield Specimen("code_inside.pt", pickled(lambda mark: {"card": {"x": Code(mark)}, "model": {}}), BAD)
    yield Specimen("array.pt", pickled(lambda mark: {"card": {}, "model": {"a": np.zeros(3)}}), BAD)
    yield Specimen("endless.pt", zipped(path, "data.pkl", lambda b: b[:40] + b"(" * 2_000_000), BAD)
    yield Specimen("long_text.pt", zipped(path, "data.pkl", lambda b: b"\x80\x02\x8d" + b"\xff" * 7 + b"\x00."), BAD)
    yield Specimen("no_pickle.pt", zipped(path, "data.pkl", lambda b: b""), BAD)
    yield Specimen("short_storage.pt", zipped(path, "data/0", lambda b: b[:4]), BAD)
    yield Specimen("folder.pt", lambda target: target.mkdir(), BAD)
    yield Specimen("pipe.pt", os.mkfifo, BAD)
    yield Specimen("device.pt", lambda target: target.symlink_to("/dev/zero"), BAD)
    yield Specimen("dangling.pt", lambda target: target.symlink_to("nowhere.pt"), BAD)
    yield Specimen("other_task.pt", lambda target: target.write_bytes(other.read_bytes()), BAD)
    yield Specimen("new\nline.pt", spread(path, b"x"), BAD)
    yield Specimen("compressed.pt", bomb, BAD)


def bomb(target: Path) -> None:
    """A deflated archive of a quarter of a gigabyte of zeros; torch itself never deflates."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        made.writestr("archive/version", "3\n")
        with made.open("archive/data/0", "w", force_zip64=True) as entry:
            block = bytes(1 << 24)
            for _ in range(16):
                entry.write(block)
    target.write_bytes(inner.getvalue())


def broken(path: Path, other: Path) -> list[Specimen]:
    """All of them, made from a good checkpoint; ``other`` is another task's."""
    return [*of_card(path), *of_payload(path), *of_bytes(path, other)]
