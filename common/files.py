"""Files that are whole or not there: written under a temporary name, flushed, renamed; and who works where."""

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
from collections.abc import Iterator
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
        give_usual_rights(temporary, 0o666)
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
        give_usual_rights(temporary, 0o777)
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


def give_usual_rights(path: Path, rights: int) -> None:
    """Let others read a file as usual: what mkstemp and mkdtemp make is the owner's alone."""
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
