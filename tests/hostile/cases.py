"""A case: a folder with odd files, a command, and the faults that were found afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.arena import Arena, Outcome
from tests.hostile.contract import file_faults, naming_faults, snapshot, stream_faults
from tests.hostile.kit import checkpoint, scene, write_picture
from tests.hostile.zoo import BAD, GOOD, Specimen

TASKS = ("rooftops", "footprints", "hela_nuclei", "potsdam_points", "permeability")
PRODUCT = re.compile(r"(_(mask|prob|overlay|figure|nuclei|counts))?\.\w{2,7}")
"""What follows the input's stem in a product's name."""
VECTORS = {"footprints": "gpkg", "rooftops": "geojson", "potsdam_points": "shp", "permeability": "gpkg"}


@dataclass
class Verdict:
    """What a case showed."""

    what: str
    outcome: Outcome
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = self.outcome.err.strip()[-1500:]
        return f"{self.what}: exit {self.outcome.code}\n  " + "\n  ".join(self.faults) + f"\n{said}"


@dataclass
class Bench:
    """Where cases run: an arena, a folder for them, and a network of each task."""

    arena: Arena
    root: Path
    checkpoints: dict[str, Path] = field(default_factory=dict)
    count: int = 0

    def network(self, task: str) -> Path:
        """A small checkpoint, outside of the case folders."""
        if task not in self.checkpoints:
            self.checkpoints[task] = checkpoint(task, self.root / "networks" / task / "small.pt")
        return self.checkpoints[task]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder, removed afterwards."""
        self.count += 1
        path = self.root / f"case{self.count}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(os.fsencode(path), ignore_errors=True)

    def judge(self, folder: Path, command: str, *args: object, limit: float = 30.0) -> Verdict:
        """Run a command in a folder; faults that no command may have."""
        before = snapshot(folder)
        outcome = self.arena.run(command, *args, cwd=folder, limit=limit)
        return Verdict(command, outcome, stream_faults(outcome) + file_faults(folder, before))


def infer(bench: Bench, task: str, specimens: Sequence[Specimen], *flags: object, limit: float = 30.0) -> Verdict:
    """Infer odd files, one command, a good picture first and last: what is good is done, what is bad is named."""
    with bench.folder() as folder:
        inputs, results = folder / "inputs", folder / "results"
        inputs.mkdir()
        for specimen in specimens:
            specimen.make(inputs / specimen.name)
        fine = [write_picture(folder / name, scene()[0]) for name in ("first.png", "last.png")]
        vector = ("--vector", VECTORS[task]) if task in VECTORS else ()
        paths = [fine[0], *(inputs / specimen.name for specimen in specimens), fine[1]]
        verdict = bench.judge(
            folder, f"{task}.infer", *paths, "--checkpoint", bench.network(task), "--output-dir", results, *vector,
            *flags, limit=limit,
        )  # fmt: skip
        verdict.what = f"{task}.infer {' '.join(repr(s.name) for s in specimens[:3])}"
        verdict.faults += infer_faults(verdict.outcome, specimens, results)
        return verdict


def infer_apart(bench: Bench, task: str, batch: Sequence[Specimen], limit: float = 30.0) -> Iterator[Verdict]:
    """Infer a batch in one command; after any fault its files one by one, to tell which."""
    verdict = infer(bench, task, batch, limit=limit * 3)
    if verdict.faults and len(batch) > 1:
        alone = [infer(bench, task, [one], limit=limit) for one in batch]
        yield from alone
        if any(one.faults for one in alone):
            return
    yield verdict


def infer_faults(outcome: Outcome, specimens: Sequence[Specimen], results: Path) -> list[str]:
    """Faults of a batch: good files without a mask, bad ones with something or without a line."""
    if outcome.killed:
        return []
    made = sorted(os.listdir(results)) if results.is_dir() else []
    faults = [f"good picture not done: {name}" for name in ("first", "last") if f"{name}_mask.png" not in made]
    failures = outcome.lines("failed:")
    stems = [Path(s.name).stem for s in specimens]
    for specimen, stem in zip(specimens, stems, strict=True):
        own = [n for n in made if PRODUCT.fullmatch(n.removeprefix(stem))] if stems.count(stem) == 1 else None
        unnamed = naming_faults(outcome, [specimen.name])
        if specimen.expect == GOOD and (not unnamed or own == []):
            said = [line for line in failures if specimen.name[:20] in line]
            faults.append(f"good file not done: {specimen.name!r}: {said[:1]}"[:300])
        elif specimen.expect == BAD and (unnamed or own):
            faults.append(f"bad file: {specimen.name!r}: {unnamed} {own or ''}")
        elif own is not None and bool(own) != bool(unnamed):
            faults.append(f"neither done nor failed, or both: {specimen.name!r}: {unnamed} {own}")
    if not failures and any(s.expect == BAD for s in specimens):
        faults.append(f"exit code {outcome.code} with bad files")
    return faults


class Listener:
    """Counts what knocks on a port of the loopback: no command may ask the network because a file says so."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.knocks = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.knocks += 1
                connection.close()

    def close(self) -> None:
        """Stop."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
