"""Results in the Cell Tracking Challenge's form: a folder ``<name>_RES`` of 16-bit masks and ``res_track.txt``.

Files of one folder whose names are a common word and a number (``t000.tif``, ``t001.tif``...) are the frames of one
sequence. Its result grows in a temporary folder and is put in place as a whole.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.command.cli import say
from hela_nuclei.tracking import Linker, write_tracks

RESULT_FILE = re.compile(r"mask\d+\.tif|res_track\.txt")


@dataclass
class _Part:
    """The frames of one size: only those can be linked."""

    folder: Path
    linker: Linker = field(default_factory=Linker)
    frames: list[tuple[Path, Any]] = field(default_factory=list)


@dataclass
class ResultSequence:
    """A result that grows frame by frame in ``scratch`` and is put in place of ``target``."""

    scratch: Path
    target: Path
    parts: dict[tuple[int, ...], _Part] = field(default_factory=dict)

    def add(self, path: Path, number: int, labels: NDArray[np.integer], dtype: np.dtype[Any]) -> NDArray[np.uint16]:
        """Link a frame's nuclei to those of the frames before, write its mask, return it with the tracks' ids."""
        part = self.parts.get(labels.shape)
        if part is None:
            part = self.parts[labels.shape] = _Part(self.scratch / "x".join(map(str, labels.shape)))
            part.folder.mkdir(parents=True)
        linked = part.linker.update(number, labels)
        tifffile.imwrite(part.folder / f"mask{number:03d}.tif", linked, compression="zlib")
        part.frames.append((path, dtype))
        return linked

    def finish(self) -> None:
        """Put the frames of the most frequent size in place and name those that differ."""
        if not self.parts:
            return
        main = max(self.parts.values(), key=lambda part: len(part.frames))
        for shape, part in self.parts.items():
            if part is not main:
                names = ", ".join(str(path) for path, _ in part.frames)
                say(f"note: {names}: {shape[0]} x {shape[1]}, unlike the others; not in {self.target}")
        kinds = [dtype for _, dtype in main.frames]
        usual = max(set(kinds), key=kinds.count)
        for path, dtype in main.frames:
            if dtype != usual:
                say(f"note: {path} is {dtype}, most of its sequence {usual}")
        write_tracks(main.folder / "res_track.txt", main.linker.tracks())
        _replace(main.folder, self.target)


@dataclass(frozen=True)
class Member:
    """A frame's place in a sequence."""

    sequence: ResultSequence
    number: int


@contextmanager
def challenge_results(
    paths: Sequence[Path], stems: Mapping[Path, str], output_dir: Path
) -> Iterator[dict[Path, Member]]:
    """Open ``<folder>_RES`` for every sequence among ``paths``; at the end put each in place.

    Yields:
        The sequence and number of each path that belongs to one.

    Raises:
        ValueError: what lies in the place of a result is none.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    taken = {f"{stem}_RES" for stem in stems.values()}
    with tempfile.TemporaryDirectory(prefix=".res-", dir=output_dir) as scratch:
        members: dict[Path, Member] = {}
        sequences: list[ResultSequence] = []
        for (folder, prefix), numbers in numbered(paths).items():
            names = (folder.name, f"{folder.name}_{prefix.strip('_-. ')}", f"{folder.parent.name}_{folder.name}")
            name = next((f"{n}_RES" for n in names if f"{n}_RES" not in taken), f"{names[0]}_{len(sequences)}_RES")
            taken.add(name)
            sequence = ResultSequence(Path(scratch) / str(len(sequences)), output_dir / name)
            check_replaceable(sequence.target, paths)
            sequences.append(sequence)
            members.update({path: Member(sequence, number) for path, number in numbers.items()})
        yield members
        for sequence in sequences:
            sequence.finish()


def numbered(paths: Sequence[Path]) -> dict[tuple[Path, str], dict[Path, int]]:
    """Frames that are parts of a sequence, by folder and the word before the number, in the order of the numbers.

    A single file is one only under the challenge's own name (``t000``): other names may end in a number by chance.
    """
    groups: dict[tuple[Path, str], dict[Path, int]] = {}
    for path in paths:
        if digits := re.search(r"\d+$", path.stem):
            key = (path.resolve().parent, path.stem[: digits.start()])
            groups.setdefault(key, {})[path] = int(digits.group())
    distinct = {
        (folder, prefix): numbers
        for (folder, prefix), numbers in groups.items()
        if len(set(numbers.values())) == len(numbers) and (len(numbers) > 1 or prefix == "t")
    }
    return {key: dict(sorted(numbers.items(), key=lambda item: item[1])) for key, numbers in distinct.items()}


def in_order(paths: Sequence[Path], members: Mapping[Path, Member]) -> list[Path]:
    """The paths with the members of each sequence in the order of their numbers."""
    return [*members, *(path for path in paths if path not in members)]


def check_replaceable(target: Path, inputs: Sequence[Path] = ()) -> None:
    """Make sure that ``target`` is free, or an earlier result and no input.

    Raises:
        ValueError: it is something else.
    """
    other = [p for p in target.iterdir() if not RESULT_FILE.fullmatch(p.name)] if target.is_dir() else []
    if other or target.is_file() or target.resolve() in {path.resolve().parent for path in inputs}:
        raise ValueError(f"{target} is no earlier result of this command; move it, or choose another --output-dir")


def write_result(target: Path, masks: Sequence[NDArray[np.uint16]], linker: Linker) -> None:
    """Write a stack's result folder."""
    with tempfile.TemporaryDirectory(prefix=".res-", dir=target.parent) as scratch:
        folder = Path(scratch) / "result"
        folder.mkdir()
        for number, mask in enumerate(masks):
            tifffile.imwrite(folder / f"mask{number:03d}.tif", mask, compression="zlib")
        write_tracks(folder / "res_track.txt", linker.tracks())
        _replace(folder, target)


def _replace(folder: Path, target: Path) -> None:
    """Put ``folder`` in the place of an earlier result, which goes with the temporary folder."""
    if target.exists():
        shutil.move(target, folder.with_name(f"{folder.name}-former"))
    folder.rename(target)
