"""Results in the Cell Tracking Challenge's form: a folder ``<name>_RES`` of 16-bit masks and ``res_track.txt``.

Files of one folder whose names are a common word and a number (``t000.tif``, ``t001.tif``...) are the frames of one
sequence. Its result grows in a temporary folder and is put in place as a whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.command.cli import say
from common.data.inputs import output_stems
from common.data.pairs import say_notes
from common.outputs import OutputFolder
from hela_nuclei.tracking import Linker, write_tracks


@dataclass
class _Part:
    """The frames of one size: only those can be linked."""

    folder: Path
    linker: Linker = field(default_factory=Linker)
    frames: list[tuple[Path, Any]] = field(default_factory=list)


@dataclass
class ResultSequence:
    """A result that grows frame by frame in ``scratch`` and becomes the folder ``name`` there."""

    scratch: Path
    name: str
    parts: dict[tuple[int, ...], _Part] = field(default_factory=dict)

    def add(self, path: Path, number: int, labels: NDArray[np.integer], dtype: np.dtype[Any]) -> NDArray[np.uint16]:
        """Link a frame's nuclei to those of the frames before, write its mask, return it with the tracks' ids."""
        part = self.parts.get(labels.shape)
        if part is None:
            part = self.parts[labels.shape] = _Part(self.scratch / "parts" / "x".join(map(str, labels.shape)))
            part.folder.mkdir(parents=True)
        linked = part.linker.update(number, labels)
        tifffile.imwrite(part.folder / f"mask{number:03d}.tif", linked, compression="zlib")
        part.frames.append((path, dtype))
        return linked

    def finish(self) -> None:
        """Keep the frames of the most frequent size and name those that differ."""
        if not self.parts:
            return
        main = max(self.parts.values(), key=lambda part: len(part.frames))
        for shape, part in self.parts.items():
            if part is not main:
                names = ", ".join(str(path) for path, _ in part.frames)
                say(f"note: {names}: {shape[0]} x {shape[1]}, unlike the others; not in {self.name}")
        kinds = [dtype for _, dtype in main.frames]
        usual = max(set(kinds), key=kinds.count)
        say_notes([f"{path}: {dtype}, most of its sequence {usual}" for path, dtype in main.frames if dtype != usual])
        if tracks := main.linker.tracks():
            write_tracks(main.folder / "res_track.txt", tracks)
            main.folder.rename(self.scratch / self.name)
        else:
            say(f"note: no nucleus in any frame, so no {self.name}: the challenge's tools take no empty result")
        shutil.rmtree(self.scratch / "parts", ignore_errors=True)


@dataclass(frozen=True)
class Member:
    """A frame's place in a sequence."""

    sequence: ResultSequence
    number: int


@contextmanager
def challenge_results(
    paths: Sequence[Path], stems: Mapping[Path, str], outputs: OutputFolder
) -> Iterator[tuple[dict[Path, Member], set[Path]]]:
    """Open ``<folder>_RES`` for every sequence among ``paths``; at the end put each in place.

    Yields:
        The sequence and number of each path that belongs to one; and those whose result has something in its way.
    """
    taken = {f"{stem}_RES" for stem in stems.values()}
    members: dict[Path, Member] = {}
    blocked: set[Path] = set()
    sequences: list[ResultSequence] = []
    with ExitStack() as stack:
        for (folder, prefix), numbers in numbered(paths).items():
            names = (folder.name, f"{folder.name}_{prefix.strip('_-. ')}", f"{folder.parent.name}_{folder.name}")
            name = next((f"{n}_RES" for n in names if f"{n}_RES" not in taken), f"{names[0]}_{len(sequences)}_RES")
            taken.add(name)
            try:
                scratch = stack.enter_context(outputs.delivery(folder, [f"{name}/"]))
            except FileExistsError as error:
                say(f"failed: {error}")
                blocked.update(numbers)
                continue
            sequences.append(ResultSequence(scratch, name))
            members.update({path: Member(sequences[-1], number) for path, number in numbers.items()})
        yield members, blocked
        for sequence in sequences:
            sequence.finish()


def sequence_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """Stem of the outputs of each input; frames named as the challenge does keep the name of their sequence's folder.

    So ``01/t025.tif`` gives ``01_t025_mask.png``, and ``02/t025.tif`` never meets it.
    """
    stems = output_stems(paths)
    named = dict(stems)
    for path, stem in stems.items():
        folder = path.resolve().parent.name
        if folder and re.fullmatch(r"t\d+", path.stem) and f"{folder}_" not in stem:
            named[path] = f"{folder}_{stem}"
    return named if len({stem.casefold() for stem in named.values()}) == len(stems) else stems


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


def write_result(folder: Path, masks: Sequence[NDArray[np.uint16]], linker: Linker) -> None:
    """Write a stack's result folder; none where there is no nucleus at all."""
    if not (tracks := linker.tracks()):
        say(f"note: no nucleus in any frame, so no {folder.name}: the challenge's tools take no empty result")
        return
    folder.mkdir()
    for number, mask in enumerate(masks):
        tifffile.imwrite(folder / f"mask{number:03d}.tif", mask, compression="zlib")
    write_tracks(folder / "res_track.txt", tracks)
