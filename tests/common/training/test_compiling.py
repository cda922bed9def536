"""Compiling pays in long trainings, where there is something to compile with."""

import pytest
import torch
from torch import nn

from common.training import compiling
from common.training.compiling import SECONDS, SEVERAL, compiled

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = SEVERAL * SECONDS / compiling.GAIN["cpu"]


@pytest.fixture
def tried(monkeypatch):
    """Networks that were compiled; everything is there to do it with."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda model: found.append(model) or model)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    return found


@pytest.mark.parametrize(
    ("wanted", "device", "seconds", "times"),
    [
        ("off", CPU, 10 * LONG, 0),
        ("on", CPU, 1.0, 1),
        ("auto", CPU, LONG - 1, 0),
        ("auto", CPU, LONG + 1, 1),
        ("auto", CUDA, LONG - 1, 1),
        ("auto", torch.device("mps"), 10 * LONG, 0),
    ],
)
def test_a_network_is_compiled_where_asked_or_where_it_pays(tried, wanted, device, seconds, times, capsys):
    model = nn.Identity()
    assert compiled(model, wanted, device, seconds) is model
    assert len(tried) == times and ("compiling" in capsys.readouterr().err) == bool(times)


@pytest.mark.parametrize(("device", "what"), [(CPU, "a C\\+\\+ compiler"), (CUDA, "triton")])
def test_without_a_compiler_it_is_refused_or_left(tried, monkeypatch, device, what, capsys):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"--compile on needs .*{what}.*--compile off"):
        compiled(nn.Identity(), "on", device, 1.0)
    compiled(nn.Identity(), "auto", device, 2 * LONG)
    assert not tried and "note: not compiled" in capsys.readouterr().err
