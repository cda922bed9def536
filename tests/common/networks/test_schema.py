"""Whatever a checkpoint's fields hold, it is whole or refused in a line."""

import copy
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from torch import nn

from common.networks.checkpoint import ModelCard, load_checkpoint, read_weights, save_checkpoint
from common.networks.schema import CARD as FIELDS
from common.networks.schema import TRAINING as STATE
from common.networks.schema import check_fit
from common.training.schedule import Schedule
from common.training.state import MovingAverage, TrainState
from tests.checkpoints import CARD, TRAINING

NAN, GONE = float("nan"), object()
BLACK = dict.fromkeys(range(3), (0, 0, 0))


@pytest.fixture
def write(tmp_path):
    """Write the checkpoint with one value replaced, or without it."""

    def writer(*keys, value):
        payload = {"format": 1, "card": asdict(CARD), "model": {"w": torch.ones(3)}, "training": dict(TRAINING)}
        payload = copy.deepcopy(payload)
        place = payload
        for key in keys[:-1]:
            place = place[key]
        if value is GONE:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        torch.save(payload, tmp_path / "odd.pt")
        return tmp_path / "odd.pt"

    return writer


WRONG = {
    "task": [None, "", 3, ["toy"]],
    "arch": [None, "", {}, "x" * 200],
    "arch_args": [None, [], {1: 2}, {"a": torch.ones(1)}, "text"],
    "classes": [GONE, None, [], ["one"], [f"c{i}" for i in range(300)], ["a", "a"], [1, 2], "ab", ["a", ""]],
    "palette": [GONE, None, [], {}, "text", {0: "red", 1: "blue"}, {0: (0, 0, 0)}, {0: (0, 0, 0), 1: (1, 2)},
                {0: (0, 0, 0), 1: (0, 0, 256)}, {"0": (0, 0, 0), "1": (1, 1, 1)}, {0: (0, 0, 0), 1: (0.5, 0, 0)}],
    "normalization": [None, [], {"mean": [0.5] * 3}, {"mean": [NAN] * 3, "std": [1] * 3},
                      {"mean": [0.5] * 3, "std": [1, 1, 0]}, {"mean": "a", "std": "b"}, {"mean": [0.5], "std": [1, 1]},
                      {"range": [5, 5]}, {"range": [0, float("inf")]}, {"range": [1]}],
    "scale": [None, 0, 0.0, NAN, -1.0, float("inf"), 1e9, "1", True],
    "threshold": [None, NAN, 2, -0.1, "0.5"],
    "split": [None, [], {"train": "abc"}, {"train": [1, 2]}],
    "loss": [None, [], {"more": 1}, {"terms": 3}, {"gamma": NAN}, {"label_smoothing": 2}, {"class_weights": [1, NAN]}],
    "maps": [None, "distance", [3]],
    "scores": [None, [], {1: 2}],
    "config": [None, "text", {1: 2}],
    "data_root": [None, 3],
}  # fmt: skip
WRONG_STATE = {
    "epoch": [GONE, None, -1, 1.5, "3", True],
    "batch": [GONE, -1], "step": [GONE, None], "loss_sum": [GONE, NAN, None], "progress": [GONE, NAN, -1.0],
    "best_iou": [GONE, NAN, 3.0], "best_loss": [GONE, NAN, None], "epochs_without_better": [GONE, "1"],
    "threshold": [GONE, NAN, 2.0],
    "history": [GONE, None, {}, [None], [{}], [{"epoch": 1}], [{**TRAINING["history"][0], "miou": NAN}],
                [TRAINING["history"][0], {**TRAINING["history"][0], "more": 1.0}]],
    "optimizer": [GONE, None, [], {}],
    "schedule": [GONE, None, {}, {"best_loss": 1.0}, {"best_loss": NAN, "bad_epochs": 0, "falls": 0}],
    "scaler": [GONE, None, []],
    "average": [GONE, [], {"w": 3}, {"w": torch.full((3,), NAN)}],
    "average_updates": [GONE, None],
    "rng": [GONE, None, {}, []],
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [(part, name, value) for part, table in (("card", WRONG), ("training", WRONG_STATE)) for name in table
     for value in table[name]],
)  # fmt: skip
def test_a_wrong_field_is_named_in_a_line(write, part, name, value):
    with pytest.raises(ValueError, match=r"checkpoint .*odd\.pt is damaged: ") as info:
        load_checkpoint(write(part, name, value=value))
    said = str(info.value)
    assert "\n" not in said and len(said) < 500 and name.split("_")[0].rstrip("s") in said


@pytest.mark.parametrize("key", ["card", "model", "training"])
@pytest.mark.parametrize("value", [None, "text", [], [1, 2], 7, {1: 2}, {"w": None}, {"w": [1.0]}, {0: torch.ones(1)}])
def test_parts_of_another_type(write, key, value):
    with pytest.raises(ValueError, match=r"odd\.pt is damaged: "):
        load_checkpoint(write(key, value=value))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0, NAN]), "not finite"),
        (torch.tensor([1.0, float("inf")]), "not finite"),
        (torch.zeros(1).expand(1000, 1000), "claims to be"),
        (torch.zeros(2, dtype=torch.complex64), "no plain tensor"),
        (torch.zeros(2, 2).to_sparse(), "no plain tensor"),
        (torch.empty(2, device="meta"), "no plain tensor"),
    ],
)
def test_weights_that_cannot_be(write, tmp_path, tensor, words):
    path = write("model", "w", value=tensor)
    for read in (load_checkpoint, read_weights):
        with pytest.raises(ValueError, match=words):
            read(path)
    torch.save({"state_dict": {"w": tensor}}, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / "theirs.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch_args": {"channels": 4}}, "as many bands"),
        ({"classes": ["a", "b", "c"]}, "palette"),
        ({"arch_args": {"outputs": 1}, "classes": ["a", "b", "c"], "palette": BLACK}, "outputs"),
        ({"normalization": {"mean": [0.5] * 2, "std": [1] * 2}}, "as many bands"),
        ({"arch_args": {"outputs": "many"}}, "outputs"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_together(tmp_path, changes, words):
    save_checkpoint(tmp_path / "odd.pt", replace(CARD, **changes), {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=rf"odd\.pt is damaged: its .*{words}"):
        load_checkpoint(tmp_path / "odd.pt")


def test_the_tables_name_what_is_written():
    assert set(FIELDS) == set(asdict(CARD)) == set(ModelCard.__dataclass_fields__)
    model = nn.Linear(2, 2)
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, Schedule("constant", 3), scaler, MovingAverage(model, 0.9))
    written = state.snapshot()
    assert set(STATE) == {*written, "others_rng"}  # of several processes
    assert all(STATE[name].holds(value) for name, value in written.items())


class Wide(nn.Module):
    def __init__(self, channels, depth=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.norm = nn.BatchNorm2d(channels)


def test_a_network_is_measured_before_it_is_built(tmp_path):
    state = Wide(2).state_dict()
    check_fit(partial(Wide, 2), state, "wide", tmp_path)
    for build, words in (
        (partial(Wide, 10**6), r"conv\.weight is \(2, 2, 3, 3\), not \(1000000, 1000000, 3, 3\) and 5 more"),
        (partial(Wide, 10**12), "cannot be built"),
        (partial(Wide, -1), "cannot be built"),
        (partial(Wide, "2"), "cannot be built"),
        (partial(Wide, 2, 3, 4), "cannot be built"),
        (partial(nn.Conv2d, 2, 2, 3), "is missing"),
    ):
        with pytest.raises(ValueError, match=words) as info:
            check_fit(build, state, "wide", tmp_path / "a.pt")
        assert "\n" not in str(info.value) and "a.pt" in str(info.value)
