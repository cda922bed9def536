"""Folders of outputs, which remember what they were made from: nothing is written over the user's files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from common.files import Workplace, file_hash, give_usual_rights, plain_path

RECORD = "provenance.jsonl"
"""The record of a folder of outputs: a line for every file that was written there."""
_MARK = b'{"file": '


class OutputFolder:
    """A folder of outputs, where nothing is replaced but what an earlier run wrote from the same input.

    ``provenance.jsonl`` in it says of every file from which input it was made (relative to the folder) and the hash of
    what was in it. A file that is not there, was made from another input, or was changed since, belongs to the user.

    Example:
        >>> with OutputFolder(out).delivery(source, ["a_mask.png"]) as temporary:  # doctest: +SKIP
        ...     write(temporary / "a_mask.png")

    Args:
        path: the folder; made when something is delivered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str], set[str]] = {}
        self._read = 0

    def check(self, names: Iterable[str], source: Path | Sequence[Path]) -> None:
        """Make sure that outputs would replace nothing of the user's.

        Args:
            names: of files, relative to this folder; that of a folder ends with a slash.
            source: the input(s) that they are made from.

        Raises:
            FileExistsError: something else is in the way; names it. A folder is in the way if any file in it is.
        """
        self._update()
        origin = self._origin(source)
        for name in names:
            target = self.path / name
            if target.is_dir() and not target.is_symlink() and name.endswith("/"):
                inside = [path for path in target.rglob("*") if not path.is_dir()]
            else:
                inside = [target] if os.path.lexists(target) else []
            for path in inside:
                wrote = self._known.get((path.relative_to(self.path).as_posix(), origin))
                if not wrote or not path.is_file() or file_hash(path) not in wrote:
                    raise FileExistsError(
                        f"{path} is in the way: no earlier run wrote it from {_first(source)}, or it was changed "
                        "since; move it, or choose another place for the outputs"
                    )

    def claim(self, names: Sequence[str], source: Path | Sequence[Path], *, owned: bool = True) -> None:
        """Make sure that the folder holds nothing but what these outputs replace: a data set is not to be mixed.

        Args:
            names: of files or folders, as for `check`.
            source: the input(s) that they are made from.
            owned: also `check` what is to be replaced.

        Raises:
            FileExistsError: something else is there; names it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is no folder; choose another place for the outputs")
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            if path.name in (RECORD, *(name.rstrip("/") for name in names)):
                continue
            if path.name.endswith(".partial"):
                raise FileExistsError(f"{path}: another run is at work there, or was killed; if so, delete that folder")
            raise FileExistsError(f"{path} is in the way: the outputs need a folder of their own, so choose another")
        if owned:
            self.check(names, source)

    @contextlib.contextmanager
    def delivery(
        self, source: Path | Sequence[Path], names: Iterable[str] = (), workplace: Workplace | None = None
    ) -> Iterator[Path]:
        """Yield a temporary folder; at the end all that lies in it is recorded and put in place, or nothing is.

        Args:
            source: the input(s) that the outputs are made from.
            names: of the outputs, to be checked beforehand.
            workplace: the caller's in this folder; None = one for this delivery. What a killed one left goes first.

        Raises:
            FileExistsError: see `check`.
        """
        self.check(names, source)
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if workplace is None:
            self.sweep()
        own = workplace or Workplace.new(self.path)
        folder = own.path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            with plain_path(folder) as plain:
                yield plain
            self._publish(folder, source)
        finally:
            if workplace is None:
                own.remove()
            else:
                shutil.rmtree(folder, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # if nothing came to lie in it

    def written(self, source: Path | Sequence[Path]) -> set[str]:
        """Names of all that was ever written from an input."""
        self._update()
        origin = self._origin(source)
        return {name for name, made_of in self._known if made_of == origin}

    def discard(self, pattern: str, source: Path | Sequence[Path], keep: Collection[str] = ()) -> None:
        """Remove what an earlier run wrote from the same input under names that match a pattern, but for ``keep``."""
        written = {name for name in self.written(source) if re.fullmatch(pattern, name)}
        for name in written.difference(keep):
            with contextlib.suppress(FileExistsError):
                self.check([name], source)
                (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed runs left here, but for finished rows, with which the next run on that input goes on."""
        for path in self.path.glob(f".*{Workplace.SUFFIX}"):
            if (path / Workplace.OWNER).is_file() and not (path / Workplace.KEPT).exists():
                abandoned = Workplace(path)
                if abandoned.claim():
                    abandoned.remove()

    def _publish(self, folder: Path, source: Path | Sequence[Path]) -> None:
        """Record and move. The record comes first: a run killed in between must know its own files again."""
        entries = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".shp", path.name))  # sidecars first
        self.check([f"{path.name}/" if path.is_dir() else path.name for path in entries], source)
        origin, lines = self._origin(source), []
        for path in (path for entry in entries for path in [entry, *sorted(entry.rglob("*"))] if path.is_file()):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            give_usual_rights(path, 0o666)
            name = path.relative_to(folder).as_posix()
            lines.append(json.dumps({"file": name, "source": origin, "sha256": file_hash(path)}))
        with (self.path / RECORD).open("ab") as record:
            record.write("".join(f"{line}\n" for line in ["", *lines][self._ends_whole() :]).encode())
            record.flush()
            os.fsync(record.fileno())
        for entry in entries:
            target = self.path / entry.name
            if entry.is_dir() and target.exists():
                target.rename(entry.with_name(f"{entry.name}.former"))
            entry.replace(target)
        for former in folder.glob("*.former"):
            shutil.rmtree(former)

    def _ends_whole(self) -> bool:
        """Whether the record's last line is whole: a power cut may have torn it."""
        record = self.path / RECORD
        if not record.is_file() or record.stat().st_size == 0:
            return True
        with record.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _update(self) -> None:
        """Read on in the record, which other runs may have added to."""
        record = self.path / RECORD
        if not os.path.lexists(record):
            return
        if not record.is_file():
            raise FileExistsError(f"{record} is no record of outputs; move it, or choose another place")
        with record.open("rb") as file:
            head = file.read(len(_MARK)).strip()
            if not head.startswith(_MARK.strip()[: len(head)]):
                raise FileExistsError(f"{record} is no record of outputs; move it, or choose another place")
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                self._read += len(line)
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # torn or damaged
                    entry = json.loads(line)
                    self._known.setdefault((entry["file"], entry["source"]), set()).add(entry["sha256"])

    def _origin(self, source: Path | Sequence[Path]) -> str:
        sources = [source] if isinstance(source, Path) else source
        return "; ".join(relative_source(path, self.path) for path in sources)


def relative_source(source: Path, folder: Path) -> str:
    """How provenance names an input: its path as seen from the folder of the outputs, with slashes, printable."""
    path = source.resolve()
    with contextlib.suppress(ValueError):  # another drive of Windows
        path = Path(os.path.relpath(path, folder.resolve()))
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _first(source: Path | Sequence[Path]) -> Path:
    return source if isinstance(source, Path) else source[0]
