"""Exit codes, and one line of complaint."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from common.command import cli
from common.command.cli import Interrupted, NonFiniteLoss, StopRequest, exit_code, run_command
from common.command.seg import commands

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("bad\nthing"), 2, "error: bad thing"),
        (FileNotFoundError("x.tif does not exist"), 2, "error: x.tif does not exist"),
        (NotADirectoryError(20, "Not a directory", "x"), 2, "error: [Errno 20] Not a directory: 'x'"),
        (PermissionError(13, "Permission denied", "x"), 2, "error: [Errno 13] Permission denied: 'x'"),
        (FileExistsError(17, "File exists", "x"), 2, "error: [Errno 17] File exists: 'x'"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "--batch-size"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
        (NonFiniteLoss("the loss became nan"), 3, "error: the loss became nan"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGINT, "saved"), 130, "saved"),
        (Interrupted(signal.SIGTERM, "saved"), 143, "saved"),
    ],
)
def test_errors_become_exit_codes_and_one_line(error, code, text, capsys):
    def main():
        raise error

    assert exit_code(main) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and text in err


@pytest.mark.parametrize("code", [0, 1])
def test_the_result_of_main_is_the_exit_code(code):
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: code)
    assert stop.value.code == code


@pytest.mark.parametrize(("rank", "waits"), [("0", 0), ("1", cli.OTHERS_WAIT)])
def test_a_command_that_torchrun_started_twice_is_refused(rank, waits, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: pytest.fail("it must not begin"))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and waited == [waits], "the first one speaks, and ends the others by ending"
    assert err.count("\n") == 1 and "started this command 2 times" in err and "--workers N" in err
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: 0)
    assert stop.value.code == 0


@pytest.mark.parametrize("task", sorted(commands()))
def test_training_alone_may_be_several_processes(task):
    allowed = [name for name in commands()[task] if "several=True" in (ROOT / task / f"{name}.py").read_text()]
    assert allowed == ["train"]


def test_inference_under_torchrun_names_the_remedy(tmp_path):
    words = [sys.executable, str(ROOT / "footprints" / "infer.py"), "picture.png"]
    environment = {**os.environ, "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "--workers" in done.stderr


def test_a_working_directory_that_was_removed_is_said(tmp_path, capsys):
    before = os.getcwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: 0)
    finally:
        os.chdir(before)
    assert stop.value.code == 2 and "working directory was removed" in capsys.readouterr().err


STREAMS = """
from common.command.cli import run_command, say
def main():
    print("x" * 100)
    say("done")
    return 0
run_command(main)
"""


@pytest.mark.parametrize(
    ("redirection", "code", "text"),
    [(">&-", 0, "done\n"), ("2>&-", 0, ""), ("<&- >&- 2>&-", 0, ""), ("> /dev/full", 1, "the disk is full")],
)
def test_closed_and_full_streams(redirection, code, text):
    line = ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, STREAMS]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code and text in done.stderr and "Exception" not in done.stderr


def test_a_reader_that_went_away():
    read, write = os.pipe()
    os.close(read)
    for buffering in ("", "1"):
        line, environment = [sys.executable, "-c", STREAMS], {**os.environ, "PYTHONUNBUFFERED": buffering}
        done = subprocess.run(line, stdout=write, stderr=-1, text=True, cwd=ROOT, env=environment, check=False)
        said = "error: nobody reads the output any more, so the rest of it is lost\n"
        assert done.returncode == 1 and done.stderr == ("" if buffering else "done\n") + said
    os.close(write)


@pytest.mark.parametrize(("error", "text"), [("KeyboardInterrupt", ""), ("KeyError('x')", "Traceback")])
def test_an_interrupt_during_the_imports_is_no_bug(error, text):
    line = [sys.executable, "-c", f"import common.command.cli; raise {error}"]
    said = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False).stderr
    assert said == "interrupted\n" if not text else text in said


def test_a_bug_keeps_its_traceback():
    for error in (KeyError("no such key"), RuntimeError("shapes do not fit"), cv2.error("bad argument")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)):
            exit_code(main)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_is_noted_and_a_second_one_ends_at_once(signum):
    child = os.fork()
    if not child:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signum)
            if stop.signum != signum:
                os._exit(9)
            os.kill(os.getpid(), signum)
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signum


def test_handlers_are_restored_after_listening():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) is not handler
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is handler


SCRIPT = """
import gc, multiprocessing, sys
sys.path[:0] = [{root!r}]
from common.command.help import help_first

help_first(__file__)
held = gc.isenabled()


def look():
    print("worker", gc.isenabled(), flush=True)


def main():
    from common.command.cli import run_command

    print("command", held, gc.isenabled(), gc.get_freeze_count() > 0, flush=True)
    worker = multiprocessing.get_context("spawn").Process(target=look)
    worker.start()
    worker.join()
    return 0


if __name__ == "__main__":
    from common.command.cli import run_command

    run_command(main)
"""


def test_unused_objects_are_collected_again_once_all_is_imported(tmp_path):
    (tmp_path / "a.py").write_text(SCRIPT.format(root=str(ROOT)))
    said = subprocess.run([sys.executable, tmp_path / "a.py"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["command False True True", "worker True"]
