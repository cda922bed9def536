"""Files that are whole or not there: written under a temporary name, flushed, renamed, never over the user's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it over ``path``.

    The temporary name keeps the suffix, since many writers choose their format by it. After an error nothing is left
    behind and a former ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _give_usual_rights(temporary, 0o666)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` at the end, and is removed after an error.

    Raises:
        ValueError: there is something at ``path``.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} is not empty; a new folder is needed, so delete it or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        _give_usual_rights(temporary, 0o777)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What a JSON file of ours holds, which a crash may have cut or a hand changed.

    Raises:
        ValueError: it is no regular file, or no JSON; the file is not named.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, the first 16 hexadecimal digits: provenance of predictions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


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

    def discard(self, pattern: str, source: Path | Sequence[Path], keep: Collection[str] = ()) -> None:
        """Remove what an earlier run wrote from the same input under names that match a pattern, but for ``keep``."""
        self._update()
        origin = self._origin(source)
        written = {name for name, made_of in self._known if made_of == origin and re.fullmatch(pattern, name)}
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
            _give_usual_rights(path, 0o666)
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


def _give_usual_rights(path: Path, rights: int) -> None:
    """Let others read it as usual: what mkstemp and mkdtemp make is the owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(rights & ~umask)


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path of a folder without characters that libraries read a meaning into (``!``, ``;``, line breaks, no UTF-8).

    If there are any, it leads over a symbolic link in the system's temporary folder.
    """
    if re.fullmatch(r"[\w ./\\:~+@%,=()\[\]-]*", str(folder.absolute())) or os.name == "nt":
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="path-") as place:
        link = Path(place) / "link"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


class Workplace:
    """A hidden folder beside outputs in which one process at a time works; it says which.

    The lock is SQLite's, the one in the standard library that holds on every system and ends with its process.
    """

    SUFFIX, OWNER, KEPT = ".partial", "owner.json", "finished.json"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: sqlite3.Connection | None = None

    @classmethod
    def new(cls, folder: Path) -> Workplace:
        """One under a name of its own, claimed."""
        place = cls(Path(tempfile.mkdtemp(prefix=".", suffix=cls.SUFFIX, dir=folder)))
        if not place.claim():
            raise OSError(f"{place.path}: another process took it; try again")
        return place

    def claim(self) -> bool:
        """Make the folder and take it, unless another process has it."""
        lock = self.path / "lock"
        while True:
            self.path.mkdir(exist_ok=True)
            lock.touch()
            before = lock.stat().st_ino
            connection = sqlite3.connect(lock, timeout=0, isolation_level=None)
            try:
                connection.execute("BEGIN EXCLUSIVE")
                if lock.stat().st_ino == before:
                    break
            except sqlite3.OperationalError as error:
                connection.close()
                if "locked" in str(error):
                    return False
                if lock.exists():
                    raise OSError(f"{lock}: cannot be locked ({error}); choose another disk") from error
            except FileNotFoundError:  # its last owner has just removed it
                connection.close()
        self._lock = connection
        text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        (self.path / self.OWNER).write_text(text)
        return True

    def owner(self) -> str:
        """Who works here, for messages."""
        try:
            found = read_json(self.path / self.OWNER)
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"

    def clear(self) -> None:
        """Remove all that lies in it."""
        for path in self.path.iterdir() if self.path.exists() else ():
            if path.name not in ("lock", "lock-journal", self.OWNER):
                remove(path)

    def remove(self) -> None:
        """Remove it, and let go of it; a signal in the midst of that does not keep it."""
        try:
            self._remove()
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        if self._lock is None:
            return
        self.clear()
        with contextlib.suppress(OSError):  # Windows keeps open files
            for path in [*self.path.iterdir()]:
                path.unlink()
            self.path.rmdir()
        self.release()
        if os.name == "nt":
            shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Let go of it; what lies in it stays."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes from working on a file meanwhile; its folder is made.

    Raises:
        ValueError: one does; says which.
    """
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Workplace(path.with_name(f".{path.name}{Workplace.SUFFIX}"))
    if not place.claim():
        raise ValueError(f"{path}: {place.owner()} works on it; wait for that to end, or choose another file")
    try:
        yield
    finally:
        place.remove()
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # if nothing came to lie in it


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
