"""Checkpoints are whole or not there, and run no code."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.command.cli import exit_code
from common.files import atomic_path, file_hash, write_text
from common.losses import LossRecipe
from common.networks.checkpoint import (
    describe,
    foreign_state_dict,
    load_checkpoint,
    load_matching,
    read_payload,
    read_weights,
    save_checkpoint,
)
from tests.checkpoints import CARD, TRAINING


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("former", [None, "old"])
def test_an_error_while_writing_leaves_the_former_file_and_nothing_else(tmp_path, former):
    path = tmp_path / "file.pt"
    if former:
        path.write_text(former)
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".pt"
        temporary.write_text("half")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == (["file.pt"] if former else [])
    assert not former or path.read_text() == former


def test_a_failing_save_leaves_the_former_checkpoint(tmp_path, model, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CARD, model.state_dict())
    before = path.read_bytes()

    def fail(payload, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, CARD, model.state_dict())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_file_is_whole_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append(self.read_text()), replace(self, target))[1])
    write_text(tmp_path / "new" / "a.txt", "all of it")
    assert seen == ["all of it"] and (tmp_path / "new" / "a.txt").read_text() == "all of it"


def test_files_have_the_usual_permissions(tmp_path):
    former = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(former)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_round_trip(tmp_path, model):
    save_checkpoint(tmp_path / "a.pt", CARD, model.state_dict(), TRAINING)
    card, weights, again = load_checkpoint(tmp_path / "a.pt", "toy")
    assert card == CARD and again.keys() == TRAINING.keys() and again["history"] == TRAINING["history"]
    for key, value in model.state_dict().items():
        assert torch.equal(weights[key], value)
    save_checkpoint(tmp_path / "b.pt", CARD, model.state_dict())
    assert load_checkpoint(tmp_path / "b.pt")[2] == {}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_with_the_reason_and_not_run(tmp_path, form):
    trap, path = tmp_path / "trap", tmp_path / "evil.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(trap)}, protocol=2))
    else:
        torch.save({"model": Evil(trap)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=rf"evil\.pt is refused.*{os.name}\.mkdir") as info:
        read_payload(path)
    assert not trap.exists() and "\n" not in str(info.value)


def test_only_numbers_of_numpy_are_allowed(tmp_path):
    numbers = {"a": np.float64(0.5), "b": np.int64(3), "c": np.float32(2), "d": np.bool_(True), "e": np.uint16(9)}
    torch.save(numbers, tmp_path / "a.pt")
    assert read_payload(tmp_path / "a.pt") == numbers
    torch.save({"a": np.array([None])}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="refused"):
        read_payload(tmp_path / "b.pt")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2(tmp_path, module):
    torch.save({"best": np.float64(0.25)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("data.pkl"):
                own = np.float64(0).__reduce__()[0].__module__.encode()
                assert own in data
                data = data.replace(own, module)
            new.writestr(item.filename, data)
    assert read_payload(tmp_path / "b.pt") == {"best": 0.25}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_damaged_files_are_a_one_line_value_error(tmp_path, model, form):
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pt", _use_new_zipfile_serialization=form == "zip")
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "cut.pt"
    for length in [0, 1, 2, 50, 100, *range(200, len(whole), 211)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pt cannot be read") as info:
            read_payload(path)
        assert "\n" not in str(info.value)


def test_any_garbage_is_a_one_line_value_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "x.pt"
    for start in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"hello world\n", b"(lp0\n"):
        for _ in range(20):
            path.write_bytes(start + rng.bytes(200))
            with pytest.raises(ValueError, match=r"x\.pt") as info:
                read_payload(path)
            assert "\n" not in str(info.value)


def test_other_things_that_are_no_checkpoint(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        read_payload(tmp_path / "none.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_payload(tmp_path / "list.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="--weights"):
        load_checkpoint(tmp_path / "bare.pt")
    torch.save({"format": 99, "card": {}, "model": {}}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="format 99"):
        load_checkpoint(tmp_path / "new.pt")
    for card in ({}, [1]):
        torch.save({"format": 1, "card": card, "model": {}}, tmp_path / "card.pt")
        with pytest.raises(ValueError, match=r"card\.pt is damaged"):
            load_checkpoint(tmp_path / "card.pt")
    save_checkpoint(tmp_path / "ours.pt", CARD, model.state_dict())
    with pytest.raises(ValueError, match=r"task toy, not to other; use toy/infer\.py"):
        load_checkpoint(tmp_path / "ours.pt", "other")


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_other_projects(tmp_path, model, key, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    payload = {key: state, "epoch": 3, "optimizer": {"state": {}}, "best": np.float64(1)} if key else state
    torch.save(payload, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    assert load_matching(model, found) == "9 tensors"


def test_our_own_weights_are_read_alike(tmp_path, model):
    save_checkpoint(tmp_path / "a.pt", CARD, model.state_dict(), TRAINING)
    assert read_weights(tmp_path / "a.pt").keys() == model.state_dict().keys()


def test_no_weights_name_file_and_keys(tmp_path):
    torch.save({"epoch": 3, "model": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: no weights.*epoch, model"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="none"):
        foreign_state_dict({})


def test_another_head_starts_anew_and_says_so(model):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))
    head = other[2].weight.clone()
    said = load_matching(other, model.state_dict())
    assert "new and untrained: 2.weight, 2.bias" in said
    assert torch.equal(other[0].weight, model[0].weight) and torch.equal(other[2].weight, head)
    with pytest.raises(ValueError, match="fits only 0 of the network's 2 tensors"):
        load_matching(nn.Linear(2, 2), model.state_dict())


def test_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea"  # FIPS 180-2


def test_describe(tmp_path, model, monkeypatch, capsys):
    save_checkpoint(tmp_path / "ours.pt", CARD, model.state_dict(), TRAINING)
    text = describe(tmp_path / "ours.pt")
    for words in (
        "task           toy",
        "net {'channels': 3",
        "ground, thing",
        "0.450",
        "train 1, val 2, test 0",
        "miou 0.5000",
        "epoch 1",
    ):
        assert words in text
    torch.save({"state_dict": model.state_dict()}, tmp_path / "theirs.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")

    def command(*names):
        monkeypatch.setattr("sys.argv", ["checkpoint", *(str(tmp_path / name) for name in names)])
        return exit_code(checkpoint.main)

    assert command("ours.pt", "theirs.pt") == 0
    assert "another project, 9 tensors, 0.000 M" in capsys.readouterr().out
    for name in ("garbage.pt", "missing.pt"):
        assert command(name) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_recipe_of_the_loss_comes_back_and_older_files_name_it_in_their_configuration(tmp_path, model):
    recipe = LossRecipe("ce+dice", label_smoothing=0.05, class_weights=(1.0, 2.5))
    save_checkpoint(tmp_path / "new.pt", replace(CARD, loss=recipe), model.state_dict())
    assert load_checkpoint(tmp_path / "new.pt")[0].loss == recipe
    settings = {"loss": "partial_ce", "gamma": 1.5, "class_weights": True, "lr": 1e-3}
    for config, expected in ((settings, LossRecipe("partial_ce", gamma=1.5)), ({}, LossRecipe("ce"))):
        save_checkpoint(tmp_path / "old.pt", replace(CARD, config=config), model.state_dict())
        payload = torch.load(tmp_path / "old.pt", weights_only=True)
        del payload["card"]["loss"], payload["card"]["maps"]
        torch.save(payload, tmp_path / "old.pt")
        assert load_checkpoint(tmp_path / "old.pt")[0].loss == expected
