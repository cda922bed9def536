"""Commands and their exit codes: no traceback for a user's mistake.

0 all done; 1 some or all inputs failed; 2 nothing could start; 3 non-finite loss; 130 / 143 after SIGINT / SIGTERM,
saved.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

STARTED = time.monotonic()
"""When the process was up (imports of this module come first): --max-minutes counts from here."""

VERSION = "0.1.0"
PARTIAL, UNUSABLE, NON_FINITE = 1, 2, 3
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a file cannot grow."""
OTHERS_WAIT = 5.0
"""Seconds in which the first of several processes says what all of them would say."""
OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "insufficient memory")

WORDING = (
    (r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: ", r"\1 needs a whole number, not "),
    (r"^Error parsing (--\S+): could not convert string to float: ", r"\1 needs a number, not "),
    (r"^Error parsing (--\S+): Could not find valid parse for arguments: ", r"\1 cannot be read from "),
    (r"^Error parsing \w+: ", ""),
    (r"^Unrecognized options: ", "no such flag or argument: "),
)
"""The parser's sentences, and plainer ones."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the text names the batch's files."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop, and the run was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class DiskFull(RuntimeError):
    """The disk is full; the text says what is kept and how to go on."""


class ProcessLost(RuntimeError):
    """Another process of the same training has ended; the text says how to go on."""


class StopRequest:
    """Notes SIGINT and SIGTERM so that a loop can end where its state is whole; a second signal ends at once.

    Args:
        patient: it does not. The queue of a cluster and ``torchrun`` both pass one stop on to the same process.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signum: int | None = None
        self._patient = patient
        self._owner = os.getpid()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if os.getpid() != self._owner:  # a forked data worker: its parent decides
            return
        if self.signum is not None and not self._patient:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block and restore the former handlers after it."""
        former = {s: signal.signal(s, self) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in former.items():
                signal.signal(signum, handler)


def one_line(error: Exception) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split())


class Voice:
    """What stderr heard last, how a line gets past the bars on it, and who speaks, where several processes do."""

    def __init__(self) -> None:
        self.spoke, self.prefix = STARTED, ""
        self.pause: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


VOICE = Voice()


def say(message: str) -> None:
    """Print one line of progress to stderr."""
    with VOICE.pause():
        print(VOICE.prefix + message, file=sys.stderr, flush=True)
    VOICE.spoke = time.monotonic()


def _quiet_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C outside of a command's ``main`` is no bug: a line, no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        say("interrupted")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _quiet_interrupt  # the imports that follow take seconds


def run_command(main: Callable[[], int], *, several: bool = False) -> NoReturn:
    """Run a command's ``main`` and leave the process with the right exit code and at most one line of complaint.

    Args:
        main: the command.
        several: whether ``torchrun`` may start it as one of several processes.
    """
    if not gc.isenabled():  # see `common.command.help.help_first`; what is imported stays
        gc.freeze()
        gc.enable()
    if not several:
        _refuse_torchrun()
    signal.signal(signal.SIGTERM, _terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the command
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's libraries end the process there
        say("error: the working directory was removed; change to one that exists")
        sys.exit(UNUSABLE)
    sys.exit(exit_code(main))


def _refuse_torchrun() -> None:
    """End a command that ``torchrun`` started several times over: all of them would write the same files."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "-1"))
    if rank >= 0 and count > 1:
        time.sleep(OTHERS_WAIT if rank else 0)  # torchrun ends this process as soon as the first one has ended
        say(
            f"error: torchrun started this command {count} times, and each would write the same files; only train.py "
            "trains in several processes: start this one with python (infer.py shares its inputs out with --workers N)"
        )
        sys.exit(UNUSABLE)


def _terminate(signum: int, frame: object) -> NoReturn:
    """End by an exception, so that temporary files are removed on the way out."""
    say("terminated")
    raise SystemExit(128 + signum)


def exit_code(main: Callable[[], int]) -> int:
    """Call ``main`` and turn what it raises into an exit code."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except NonFiniteLoss as error:
        say(f"error: {error}")
        return NON_FINITE
    except (DiskFull, ProcessLost) as error:
        say(f"error: {error}")
        return PARTIAL
    except Interrupted as error:
        say(str(error))
        return 128 + error.signum
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        say("error: nobody reads the output any more, so the rest of it is lost")
        with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # the interpreter writes what is left at its end
        return PARTIAL
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            say(f"error: the disk is full: {one_line(error)}; free some space and start the command again")
            return PARTIAL
        say(f"error: {one_line(error)}")
        return UNUSABLE
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedy = "lower --batch-size (raise --grad-accum to compensate), the crop size or the network's widths"
        say(f"error: out of memory; {remedy}")
        return PARTIAL


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; of CUDA and Python by class, of others by text."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    native = isinstance(error, RuntimeError) or type(error).__module__.startswith("cv2")
    return native and any(sign in str(error).lower() for sign in OUT_OF_MEMORY_SIGNS)


@contextlib.contextmanager
def one_line_usage_errors() -> Iterator[None]:
    """Turn the parser's boxed complaint into one line.

    Raises:
        ValueError: the flags do not parse.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_complaint(box.getvalue()) or 'the flags do not parse'} (--help lists them)") from None


def _complaint(box: str) -> str:
    """The parser's complaint as a sentence: the first paragraph of its box, and the flags it would rather have seen."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()[1:]]  # without the box's title
    inside = "\n".join("" if re.fullmatch("[╰╯─-]*", line) else line for line in lines)
    paragraphs = re.split(r"\n\n+", inside.strip())
    text = " ".join(paragraphs[0].split())
    for pattern, plain in WORDING:
        text = re.sub(pattern, plain, text)
    near = re.findall(r"(?m)^--[\w-]+", "\n".join(part for part in paragraphs if part.startswith("Perhaps")))
    return text + (f"; perhaps you meant {' or '.join(near[:3])}" if near else "")
