"""What every command owes its user, whatever it is given: the faults of one run, found by looking from outside.

A fault is a line of text. The rules: an exit code of 0 to 3, no traceback, one line for each failure that names its
file, every file of the user as it was, no half-written file under a final name, nothing left over, bounded time and
memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import rasterio
import torch
import yaml
from PIL import Image

from tests.hostile.arena import Outcome

NOISE = re.compile(r"^(?:.*\w+Warning: |ERROR \d+: |Warning \d+: |Exception ignored|.*\bCPLE_)")
TRACE = re.compile(r"Traceback|Fatal Python error|Segmentation fault|^\s+File \".*\", line \d+", re.MULTILINE)
SIDE_FILES = (".md", ".shx", ".dbf", ".prj", ".cpg", ".txt", ".html", ".onnx.data")
Snapshot = dict[bytes, str]


def snapshot(folder: Path) -> Snapshot:
    """Everything under a folder: kind, mode and content of each path. Links are not followed."""
    found: Snapshot = {}
    for base, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(base, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            if stat.S_ISREG(info.st_mode):
                content = fingerprint(path, info.st_size)
            else:
                content = os.fsdecode(os.readlink(path)) if stat.S_ISLNK(info.st_mode) else ""
            found[os.path.relpath(path, os.fsencode(folder))] = f"{kind} {info.st_mode} {content}"
    return found


def fingerprint(path: bytes, size: int) -> str:
    """Hash of a file; of the sparse giants of the zoo only of their beginning."""
    with open(path, "rb") as file:
        return f"{size} {hashlib.sha256(file.read(64 << 20)).hexdigest()}"


def opens(path: Path) -> str:
    """Why a product does not open as what its name says; empty if it does."""
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as plain:
            warnings.simplefilter("ignore")
            for part in path.parent.iterdir():  # a shapefile is several files
                if part.stem == path.stem:  # under a plain name: libraries read a meaning into others
                    (Path(plain) / f"product{part.suffix}").symlink_to(part.resolve())
            reader(path)(Path(plain) / f"product{path.suffix}")
    except Exception as error:  # whatever its decoder raises is the answer
        return f"{type(error).__name__}: {error}"
    return ""


def reader(path: Path) -> Callable[[Path], object]:
    """What opens a file of this name from its first to its last byte."""
    suffix = path.suffix.lower()
    if path.name.startswith("events.out.tfevents") or path.name == ".run" or suffix in SIDE_FILES:
        return Path.read_bytes
    return {
        ".png": read_picture, ".tif": read_raster, ".gpkg": pyogrio.raw.read, ".shp": pyogrio.raw.read,
        ".geojson": pyogrio.raw.read, ".csv": read_table, ".json": lambda p: json.loads(p.read_text()),
        ".yaml": lambda p: yaml.safe_load(p.read_text()), ".pt": read_tensors, ".avi": read_video, ".mp4": read_video,
        ".onnx": read_graph, ".jsonl": lambda p: [json.loads(line) for line in p.read_text().splitlines()],
    }[suffix]  # fmt: skip


def read_picture(path: Path) -> None:
    """Decode all of it."""
    with Image.open(path) as image:
        image.load()


def read_raster(path: Path) -> None:
    """Decode every band."""
    with rasterio.open(path) as file:
        file.read()


def read_table(path: Path) -> None:
    """Every row must have the header's columns."""
    rows = list(csv.reader(path.open(newline="", encoding="utf-8")))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of other lengths than the header")


def read_tensors(path: Path) -> None:
    """Unpickle nothing but tensors and plain values."""
    torch.load(path, map_location="cpu", weights_only=True)


def read_video(path: Path) -> None:
    """Decode frame after frame; there must be one, and as many as the header says."""
    video = cv2.VideoCapture(str(path))
    count, promised = 0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    while video.read()[0]:
        count += 1
    video.release()
    if not count or count != promised:
        raise ValueError(f"{count} frames, its header says {promised}")


def read_graph(path: Path) -> None:
    """Check the graph."""
    import onnx

    onnx.checker.check_model(onnx.load(path))


def names(line: str, name: str) -> bool:
    """Whether a message names a file; of an unprintable name its longest printable piece must do."""
    piece = name[:60] if name.isprintable() else max(re.findall(r"[0-9A-Za-z_.!;$()\[\] -]+", name), key=len)[:60]
    if name.startswith(piece):  # another file's name may end like this one
        return re.search(rf"(?<![\w.-]){re.escape(piece)}", line) is not None
    return piece in line


def stream_faults(outcome: Outcome) -> list[str]:
    """Faults of how a command ended and of what it said."""
    faults = []
    if outcome.killed in ("hang", "memory"):
        faults.append(f"{outcome.killed}: {outcome.seconds:.0f} s, {outcome.peak / 1e9:.2f} GB")
    elif outcome.killed:
        return []
    elif outcome.code < 0:
        faults.append(f"crash: signal {-outcome.code}: {outcome.err.strip().splitlines()[:1]}")
    elif outcome.code not in (0, 1, 2, 3):
        faults.append(f"exit code {outcome.code}")
    if TRACE.search(outcome.err + outcome.out) and outcome.code >= 0:
        faults.append(f"traceback: {outcome.err.strip().splitlines()[-1][:200]}")
    faults += [f"noise: {line[:160]}" for line in outcome.err.split("\n") if NOISE.match(line)]
    errors, failures = outcome.lines("error:"), outcome.lines("failed:") + outcome.lines("skipped:")
    if outcome.code == 2 and len(errors) != 1:
        faults.append(f"exit code 2 with {len(errors)} lines of error")
    if outcome.code == 1 and not failures + errors:
        faults.append("exit code 1 without a line that says what failed")
    if outcome.code == 0 and outcome.lines("failed:") + errors:
        faults.append(f"exit code 0 with: {(failures + errors)[0][:160]}")
    return faults


def naming_faults(outcome: Outcome, files: Iterable[str]) -> list[str]:
    """Faults of naming what failed: each file once."""
    lines = [line for start in ("failed:", "skipped:", "error:") for line in outcome.lines(start)]
    faults = []
    for name in files:
        count = sum(names(line, name) for line in lines)
        if count != 1:
            faults.append(f"named {count} times: {name!r}")
    return faults


def file_faults(folder: Path, before: Snapshot, *, killed: bool = False) -> list[str]:
    """Faults among the files: what the user had is as it was, what is new is whole."""
    after = snapshot(folder)
    faults = []
    for path, state in before.items():
        if after.get(path) != state:
            faults.append(f"{'changed' if path in after else 'removed'}: {os.fsdecode(path)!r}")
    for path in after.keys() - before.keys():
        full = folder / os.fsdecode(path)
        parts = path.split(b"/")
        hidden = any(part.startswith(b".") and part != b".run" and not part.startswith(b".hidden") for part in parts)
        if hidden and not killed:
            faults.append(f"left over: {os.fsdecode(path)!r}")
        elif not hidden and full.is_file() and (reason := opens(full)):
            faults.append(f"half-written: {os.fsdecode(path)!r}: {reason[:120]}")
    return sorted(faults)


def placed(transform: object) -> bool:
    """Whether an affine map has finite numbers."""
    return bool(np.isfinite(np.array(tuple(transform))).all())
