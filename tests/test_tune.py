"""Every task brings a search whose space its training understands, and keeps the winner as a recipe."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from common.command.cli import exit_code
from common.training import tune as core
from common.training.runs import load_train_config

TASKS = ("permeability", "rooftops", "footprints", "potsdam_points", "hela_nuclei")


@pytest.mark.parametrize("task", TASKS)
def test_a_search_of_every_task(task, tmp_path, monkeypatch):
    train, tune = import_module(f"{task}.train"), import_module(f"{task}.tune")
    seen = []

    def fit(experiment, config, run, precision):
        seen.append(config)
        run.create(config)
        (run.path / "best_iou.pt").write_text(f"network {len(seen)}")
        run.log_epoch([{"epoch": 1, "miou": 0.1 * len(seen)}])
        run.close()

    monkeypatch.setattr(core, "fit", fit)
    monkeypatch.setattr(train, "load_data", lambda config: config)
    monkeypatch.setattr(train, "build", lambda config, data: data)
    monkeypatch.setattr(core, "log_hparams", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    flags = ["tune.py", "--engine", "optuna", "--trials", "2", "--storage", "s.json", "--data-root", "there"]
    monkeypatch.setattr(sys, "argv", flags)
    assert exit_code(tune.main) == 0
    folder, home = Path("runs", task, "tune-s"), Path(tune.__file__).parent
    trials = json.loads(Path("s.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "complete"]
    assert (folder / "best.pt").read_text() == "network 2"
    again = load_train_config(train.Config, home, ["--config", str(folder / "best.yaml"), "--data-root", "there"])
    for name in trials[1]["params"]:
        assert getattr(again, name) == getattr(seen[1], name)
