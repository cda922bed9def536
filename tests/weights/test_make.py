"""The commands that make the weights, for a few steps."""

import sys

import pytest
import torch

from common.command.cli import exit_code
from common.networks.checkpoint import load_checkpoint
from common.scenes.aerial import LAND
from hela_nuclei.task import TASK as NUCLEI
from weights import make_aerial, make_nuclei

QUICK = ("--epochs", "1", "--batch-size", "2", "--samples-per-epoch", "4", "--crop-size", "64")


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (make_nuclei, ("--sequences", "1")),
        (make_aerial, ("--scenes", "2", "--widths", "8", "8", "16")),
    ],
    ids=["nuclei", "aerial"],
)
def test_a_file_that_ships_can_be_made(module, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make", *QUICK, *flags, "--output-dir", "run", "--out", "made.pt"])
    monkeypatch.chdir(tmp_path)
    assert exit_code(module.main) == 0
    card, weights, training = load_checkpoint(tmp_path / "made.pt")
    assert not training and str(tmp_path) not in str(card)
    best = load_checkpoint(tmp_path / "run" / "best_iou.pt")[1]
    for key, value in weights.items():
        assert torch.allclose(value.float(), best[key].float(), rtol=2e-3, atol=1e-6), key
    if module is make_nuclei:
        assert NUCLEI.load(tmp_path / "made.pt")[1].maps == ("distance",)
    else:
        assert card.classes == list(LAND) and card.gsd == make_aerial.SEEN


def test_the_mean_with_other_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--scenes", "2", "--widths", "8", "8", "16")
    for name, flags in (
        ("start", ()),
        ("made", ("--weights", "start.pt", "--mean", "start.pt", "start.pt", "--seed", "1")),
    ):
        monkeypatch.setattr(sys, "argv", ["make", *QUICK, *small, *flags, "--output-dir", name, "--out", f"{name}.pt"])
        assert exit_code(make_aerial.main) == 0
    start, best, made = (load_checkpoint(tmp_path / name)[1] for name in ("start.pt", "made/best_iou.pt", "made.pt"))
    for key, value in made.items():
        if value.is_floating_point():
            expected = (2 * start[key].float() + best[key].float()) / 3
            assert torch.allclose(value.float(), expected, rtol=2e-3, atol=1e-5), key
    assert any(not torch.equal(start[key].float(), best[key].half().float()) for key in made)
