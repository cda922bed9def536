import shutil
from pathlib import Path

import pytest

from hela_nuclei.scenes.sequences import write_challenge
from tests.commands import command_fixtures

started, command, call = command_fixtures("hela_nuclei")
ROOT = Path(__file__).resolve().parents[2]


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
def training(scene, tmp_path_factory, command):
    """One short training, started from a folder that has nothing to do with the project: (result, its folder)."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    config = ROOT / "hela_nuclei" / "demo.yaml"
    result = command("train", "--data-root", scene, "--config", config, *SHORT, cwd=cwd)
    assert result.code == 0, result.err
    (folder,) = (cwd / "runs" / "hela_nuclei").iterdir()
    return result, folder


@pytest.fixture(scope="session")
def checkpoint(training):
    return training[1] / "best_iou.pt"
