"""Running the commands of a task in tests: as a process of its own, or inside this one."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch

from common.command.cli import exit_code
from common.command.progress import Work
from common.networks.checkpoint import load_checkpoint
from common.training.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Result:
    code: int
    out: str
    err: str

    def mistake(self, *words, code=2):
        """A user's mistake: the right code, one line of complaint that holds the words, no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err + self.out
        complaint = [line for line in self.err.splitlines() if line.startswith("error:" if code == 2 else "failed:")]
        assert len(complaint) == 1, self.err
        for word in words:
            assert str(word) in complaint[0]


def works_shown(monkeypatch):
    """What is shown as under way from now on, in order of its end, and whether it was done to its end."""
    works, close = [], Work.__exit__
    monkeypatch.setattr(
        Work, "__exit__", lambda self, *error: works.append((self.what, self.done == self.total)) or close(self, *error)
    )
    return works


def command_fixtures(task):
    """The fixtures ``started``, ``command`` and ``call`` of a task's tests, for its conftest."""

    @pytest.fixture(scope="session")
    def started():
        """Start a command as a process of its own; returns the process."""

        def start(script, *args, cwd, **options):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            line = [sys.executable, str(ROOT / task / f"{script}.py"), *map(str, args)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            return subprocess.Popen(line, cwd=cwd, env=environment, **pipes, **options)

        return start

    @pytest.fixture(scope="session")
    def command(started):
        """Run a command as a process of its own."""

        def run(script, *args, cwd):
            process = started(script, *args, cwd=cwd)
            out, err = process.communicate(timeout=300)
            return Result(process.returncode, out, err)

        return run

    @pytest.fixture
    def call(monkeypatch, capfd, tmp_path):
        """Run a command inside this process (imports cost seconds), in an empty working directory."""

        def caller(script, *args, cwd=None):
            here = Path(cwd or tmp_path / "elsewhere")
            here.mkdir(exist_ok=True)
            monkeypatch.chdir(here)
            monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
            capfd.readouterr()
            code = exit_code(import_module(f"{task}.{script}").main)
            return Result(code, *capfd.readouterr())

        return caller

    return started, command, call


def training_fixtures(data, small, *flags):
    """The fixtures ``small`` and ``trained`` of a task's tests, for its conftest.

    Args:
        data: name of the fixture that gives the folder to train on.
        small: flags of a training that takes seconds.
        flags: more of them for ``trained``.
    """

    @pytest.fixture(scope="session", name="small")
    def small_fixture():
        """Flags of a training that takes seconds."""
        return small

    @pytest.fixture(scope="session")
    def trained(request, tmp_path_factory, command):
        """A run folder: a small network trained for some seconds; and what the training printed."""
        folder = tmp_path_factory.mktemp("runs")
        place = ("--data-root", request.getfixturevalue(data), "--output-dir", folder / "run")
        result = command("train", *small, *flags, *place, cwd=folder)
        assert result.code == 0, result.err
        return folder / "run", result

    return small_fixture, trained


def check_resume(call, monkeypatch, folder, *flags):
    """A training that is stopped after an epoch and goes on must end with the weights of one that was not stopped."""

    def stop(run, history):
        raise KeyboardInterrupt

    assert call("train", *flags, "--output-dir", folder / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log_epoch", stop)
        assert call("train", *flags, "--output-dir", folder / "parts").code == 130
    resumed = call("train", *flags, "--output-dir", folder / "parts", "--resume", "auto")
    assert resumed.code == 0, resumed.err
    one, two = (load_checkpoint(folder / name / "last.pt")[1] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)
