"""Commands run as a user runs them, each in a process of its own that may crash, hang or swell without harm.

One process imports a command once and forks a child for each case, which takes a tenth of a second instead of four.
The child has its own group, working directory and streams; it is killed after a time limit or beyond two gigabytes.

    python tests/hostile/arena.py     # what tests start: requests on stdin, outcomes on stdout, one JSON object a line
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 2 << 30
FILE_SIZE = 4 << 30
LIMIT = 30.0
IDLE = 8.0
"""Seconds without work, while nothing else is needed than work, that count as hanging."""
POLL = 0.02


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; minus the signal that ended it."""
    out: str
    err: str
    seconds: float
    """On the clock."""
    work: float
    """Seconds of processor time."""
    peak: int
    """Bytes of memory at most."""
    killed: str = ""
    """Why the arena ended it: hang, memory or moment (asked for); empty if it ended by itself."""

    def lines(self, start: str) -> list[str]:
        """The lines of stderr that begin so."""
        return [line for line in self.err.split("\n") if line.startswith(start)]


class Arena:
    """A server that forks a child for each command. Close it at the end."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CPL_LOG_ERRORS": "ON", "PYTHONUTF8": "1"}
        line = [sys.executable, str(Path(__file__).resolve())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen(line, env=environment, cwd=ROOT, **pipes)

    def run(
        self, command: str, *args: object, cwd: Path, limit: float = LIMIT, kill_after: float | None = None
    ) -> Outcome:
        """Run a command, such as ``rooftops.infer``, with its flags, in a working directory.

        Args:
            command: package and module.
            args: flags.
            cwd: working directory.
            limit: seconds of processor time after which it counts as hanging.
            kill_after: SIGKILL after so many seconds, on purpose.
        """
        words = [os.fsdecode(os.fspath(a)) if isinstance(a, Path) else str(a) for a in args]
        request = {"command": command, "args": words, "cwd": str(cwd), "limit": limit, "kill_after": kill_after}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the arena itself ended at {request}")
        return Outcome(**json.loads(answer))

    def close(self) -> None:
        """End the server."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def in_child(request: dict, out: Path, err: Path) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no child outlives the arena
        for number, path in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        os.chdir(request["cwd"])
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.argv = [request["command"], *request["args"]]
        code = leave(request["command"])
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def leave(command: str) -> int:
    """The exit code of a command, as the interpreter would give it."""
    import atexit
    import faulthandler
    import traceback

    from common.command.cli import run_command

    faulthandler.enable(file=2)
    try:
        run_command(import_module(command).main)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
    return 1


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return int(fields[1]) * resource.getpagesize() if len(fields) > 1 else 0


def worked(pid: int) -> tuple[float, bool]:
    """Seconds of processor time that a process has had, and whether it waits for something else than a processor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0.0, False
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] in "SD"


def kill(pid: int) -> None:
    """End a child and all that it started."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def watch(pid: int, request: dict) -> tuple[str, int]:
    """Wait for a child, killing it when it must be; why it was killed, and its memory at most.

    A busy machine makes nothing hang: what counts is the child's own processor time, and how long it waits in vain.
    """
    started, peak, moment = time.monotonic(), 0, request["kill_after"]
    moved, spent = started, 0.0
    handle = os.pidfd_open(pid)
    try:
        while not select.select([handle], [], [], POLL)[0]:
            peak, now = max(peak, resident(pid)), time.monotonic()
            used, waits = worked(pid)
            if not waits or used > spent:
                moved, spent = now, used
            reason = (
                "moment" if moment is not None and now - started > moment
                else "memory" if peak > MEMORY
                else "hang" if used > request["limit"] or now - moved > IDLE
                else ""
            )  # fmt: skip
            if reason:
                kill(pid)
                return reason, peak
    finally:
        os.close(handle)
    return "", peak


def answer(request: dict) -> Outcome:
    """Import the command once and for all, fork, wait, report."""
    with contextlib.suppress(Exception):  # the child says what is wrong with it
        import_module(request["command"])
    gc.collect()
    gc.freeze()  # the children leave these pages alone
    folder = Path(tempfile.mkdtemp(prefix="arena-"))  # TemporaryDirectory would be removed at the child's exit too
    try:
        out, err = folder / "out", folder / "err"
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            in_child(request, out, err)
        killed, peak = watch(pid, request)
        _, status, usage = os.wait4(pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it started and left
        code = os.waitstatus_to_exitcode(status)
        texts = [p.read_text("utf-8", "backslashreplace") if p.exists() else "" for p in (out, err)]
        peak = max(peak, usage.ru_maxrss << 10)
        return Outcome(code, *texts, time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak, killed)
    finally:
        shutil.rmtree(folder)


def serve() -> None:
    """Answer requests until stdin ends."""
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in requests:
        answers.write(json.dumps(asdict(answer(json.loads(line)))) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
    os._exit(0)  # interpreters end with complaints of libraries about themselves
