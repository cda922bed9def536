import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from common.cli import exit_code
from common.scenes.hela import write_challenge

ROOT = Path(__file__).resolve().parents[2]


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


def start(script, *args, cwd, **options):
    """Start one of the task's commands as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "hela_nuclei" / f"{script}.py"), *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes, **options)


def run(script, *args, cwd):
    process = start(script, *args, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


@pytest.fixture(scope="session")
def command():
    return run


@pytest.fixture(scope="session")
def started():
    return start


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run a command inside this process (imports cost seconds), in an empty working directory."""

    def caller(script, *args, cwd=None):
        here = Path(cwd or tmp_path / "elsewhere")
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capfd.readouterr()
        code = exit_code(import_module(f"hela_nuclei.{script}").main)
        return Result(code, *capfd.readouterr())

    return caller


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A small challenge folder, to be left as it is: 2 sequences of 5 frames 96 x 128."""
    folder = tmp_path_factory.mktemp("hela") / "scene"
    write_challenge(folder, sequences=2, frames=5, height=96, width=128, seed=3)
    return folder


@pytest.fixture
def own_scene(scene, tmp_path):
    """A copy of the scene to spoil."""
    return shutil.copytree(scene, tmp_path / "own")


SHORT = ("--epochs", 3, "--crop-size", 64, "--samples-per-epoch", 64, "--border", 10, "--ema", 0, "--batch-size", 8)


@pytest.fixture(scope="session")
def training(scene, tmp_path_factory):
    """One short training, started from a folder that has nothing to do with the project: (result, its folder)."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    config = ROOT / "hela_nuclei" / "demo.yaml"
    result = run("train", "--data-root", scene, "--config", config, *SHORT, cwd=cwd)
    assert result.code == 0, result.err
    (folder,) = (cwd / "runs" / "hela_nuclei").iterdir()
    return result, folder


@pytest.fixture(scope="session")
def checkpoint(training):
    return training[1] / "best_iou.pt"
