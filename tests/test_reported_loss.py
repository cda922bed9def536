"""The loss that ``evaluate.py`` reports is the one that was trained, from the checkpoint alone, in every task."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from common.command.cli import exit_code
from common.networks.checkpoint import load_checkpoint
from tests.hostile.kit import write_training

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--weights",
    "none",
    "--epochs",
    1,
    "--samples-per-epoch",
    4,
    "--batch-size",
    2,
    "--max-minutes",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
)
TASKS = {
    "footprints": ("--widths", 4, 8, "--crop-size", 64),
    "hela_nuclei": (
        "--widths", 4, 4, 8, 8, "--crop-size", 64, "--border", 0, "--val-fraction", 0.3, "--test-fraction", 0.3,
    ),
    "permeability": ("--crop-size", 64, "--val-tiles", 0),
    "potsdam_points": (
        "--widths", 4, 4, 8, 8, 8, "--crop-size", 64, "--points", 200, "--val-last", 0, "--val-fraction", 0.3,
        "--test-fraction", 0.3, "--gamma", 1.5, "--class-weights",
    ),
    "rooftops": ("--crop-size", 64, "--val-fraction", 0.3, "--test-fraction", 0.3),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_reports_the_loss_of_the_training(task, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data, run = write_training(task, tmp_path / "data"), tmp_path / "run"

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [script, "--data-root", str(data), *map(str, words)])
        capfd.readouterr()
        assert exit_code(import_module(f"{task}.{script}").main) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    call("train", "--config", ROOT / task / "best.yaml", *SMALL, *TASKS[task], "--output-dir", run)
    trained = json.loads((run / "test_metrics.json").read_text())
    flags = ("--device", "cpu", "--amp", "off", *(("--border", 0) if task == "hela_nuclei" else ()))
    evaluated = json.loads(call("evaluate", "--checkpoint", run / "best_iou.pt", *flags).splitlines()[-1])
    assert evaluated == trained and evaluated["loss"] > 0
    # It is the loss of the recipe in the card, which tells other recipes from it.
    payload = torch.load(run / "best_iou.pt", weights_only=True)
    assert payload["card"]["loss"]["terms"] == load_checkpoint(run / "best_iou.pt")[0].config["loss"]
    payload["card"]["loss"] |= {"terms": "focal", "class_weights": None}
    torch.save(payload, tmp_path / "other.pt")
    other = json.loads(call("evaluate", "--checkpoint", tmp_path / "other.pt", *flags).splitlines()[-1])
    assert other["loss"] != trained["loss"] and {**other, "loss": 0} == {**trained, "loss": 0}
