"""Training goes on exactly where it stopped, whatever stopped it."""

import copy
import csv
import functools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.command.cli import NON_FINITE, Interrupted, NonFiniteLoss, StopRequest, exit_code
from common.command.config import TrainConfig
from common.data.sampling import EpochBatches
from common.losses import LossRecipe
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard, load_checkpoint
from common.networks.precision import Precision, choose_precision
from common.networks.probabilities import foreground_probability
from common.training import budget
from common.training import loop as training
from common.training.experiment import Engine, Experiment
from common.training.loading import validation_loader
from common.training.loop import evaluate, fit, seed_everything
from common.training.runs import RunFolder
from common.training.schedule import Clock
from common.training.state import PLAIN

CPU, BF16 = choose_precision("cpu", "off"), Precision(torch.device("cpu"), torch.bfloat16)
CARD = ModelCard("toy", "net", {}, ["ground", "thing"], {0: (0, 0, 0), 1: (255, 255, 255)})
LENGTH, EPOCHS = 10, 4
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=2, lr=0.02, weight_decay=0.01, ema=0.9, grad_accum=2, clip_norm=1.0,
                     scheduler="plateau", lr_patience=0, early_stopping=50, seed=3, workers=0)  # fmt: skip
COSINE = replace(CONFIG, scheduler="cosine", warmup_steps=3)
UNTIMED = ("seconds", "samples_per_second", "peak_memory_mb")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The pictures of an epoch look at validation samples too, at times that depend on how long an epoch takes."""
    monkeypatch.setattr(training, "draw_epoch", lambda *_: None)


class Blobs:
    """Pictures whose truth is where the first channel is bright; ``events`` happen when their key (or call) comes."""

    def __init__(self, length=LENGTH, ignored=False):
        rng = np.random.default_rng(0)
        self.images = torch.from_numpy(rng.random((length, 3, 8, 8), dtype=np.float32))
        self.targets = (self.images[:, 0] > 0.5).long()
        if ignored:
            for i in range(length):
                self.targets[i].view(-1)[: 5 * i] = 255
        self.events, self.calls = {}, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, None)
        self.calls += 1
        self.events.get(key if seed is not None else self.calls, lambda: None)()
        image, target = self.images[index], self.targets[index]
        if seed is not None:
            rng = np.random.default_rng(seed)
            image = image + torch.from_numpy(rng.normal(0, 0.1, image.shape).astype(np.float32))
            if rng.random() < 0.5:
                image, target = image.flip(-1), target.flip(-1)
        return {"image": image, "target": target, "id": f"blob{index}.png"}


def network(norm=True):
    middle = [nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Conv2d(4, 1, 1))


def criterion(logits, batch):
    return F.binary_cross_entropy_with_logits(logits[:, 0], batch["target"].float())


def key_of(epoch, batch, config=CONFIG):
    sampler = EpochBatches(LENGTH, config.batch_size, config.seed)
    sampler.epoch, sampler.first_batch = epoch, batch
    return next(iter(sampler))[0]


def train(folder, config=CONFIG, *, events=None, val_events=None, resume=False, model=None, precision=CPU, data=None):
    again, resume = resume, resume and (folder / "last.pt").exists()
    seed_everything(12345 if resume else 0)  # resuming must not depend on what was drawn before it
    data, val = data or Blobs(), Blobs(4)
    data.events, val.events = events or {}, val_events or {}
    run = RunFolder(folder, folder / "last.pt" if resume else None, again=again)
    return fit(Experiment(model or network(), CARD, data, val, 0, criterion), config, run, precision)


def contents(folder):
    """Everything a run leaves, apart from how fast it was and its settings."""
    found = {}
    for name in ("last.pt", "best_iou.pt", "best_loss.pt"):
        card, weights, state = load_checkpoint(folder / name, "toy")
        history = [{k: v for k, v in row.items() if k not in UNTIMED} for row in state.pop("history", [])]
        found[name] = (replace(card, config={}), dict(weights), state, history)
    with (folder / "metrics.csv").open() as file:
        found["metrics.csv"] = [{k: v for k, v in row.items() if k not in UNTIMED} for row in csv.DictReader(file)]
    return found


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the uninterrupted runs leave, by schedule."""
    results = {}
    for config in (CONFIG, COSINE):
        folder = tmp_path_factory.mktemp(config.scheduler)
        train(folder, config)
        results[config.scheduler] = contents(folder)
    return results


def send(signum):
    return lambda: os.kill(os.getpid(), signum)


def test_two_parts_equal_the_whole(tmp_path, whole):
    train(tmp_path, replace(CONFIG, epochs=1))
    train(tmp_path, CONFIG, resume=True)
    assert_same(contents(tmp_path), whole["plateau"])


def test_these_runs_are_what_they_should_be(whole):
    state = whole["plateau"]["last.pt"][2]
    assert state["average_updates"] == state["step"] == 3 * EPOCHS
    assert len(whole["plateau"]["metrics.csv"]) == EPOCHS


def test_everything_in_the_state_comes_back(tmp_path):
    state = train(tmp_path, replace(CONFIG, epochs=1))
    state.schedule.best_loss, state.schedule.bad_epochs, state.schedule.falls = 0.25, 3, 2
    for i, name in enumerate(PLAIN):
        setattr(state, name, [{"row": i}] if name == "history" else i + 1)
    saved = copy.deepcopy(state.snapshot())
    fresh = train(tmp_path / "other", replace(CONFIG, epochs=2, seed=9))
    fresh.restore(copy.deepcopy(state.model.state_dict()), copy.deepcopy(saved))
    assert_same(fresh.snapshot(), saved)
    assert_same(dict(fresh.model.state_dict()), dict(state.model.state_dict()))
    assert set(PLAIN) | {"model", "optimizer", "schedule", "scaler", "average"} == {f.name for f in fields(state)}


@pytest.mark.parametrize(
    "change",
    [{"step": torch.tensor(-5.0)}, {"step": torch.tensor(math.nan)}, {"exp_avg_sq": -1}, {"exp_avg": math.nan}],
    ids=str,
)
def test_impossible_numbers_of_the_optimizer_are_refused(tmp_path, change):
    state = train(tmp_path, replace(CONFIG, epochs=1))
    saved = copy.deepcopy(state.snapshot())
    for name, value in change.items():
        entries = saved["optimizer"]["state"][0]
        entries[name] = value if isinstance(value, torch.Tensor) else torch.full_like(entries[name], value)
    with pytest.raises(ValueError, match="is damaged: its optimizer's state holds impossible numbers"):
        state.restore(state.model.state_dict(), saved)


@pytest.mark.parametrize("change", [{"batch": 10**6}, {"hits": [[1, 2], [3, 4]]}, {"batch": 1, "hits": [[1]]}], ids=str)
def test_batches_that_cannot_have_been_done_are_refused(tmp_path, change):
    train(tmp_path, replace(CONFIG, epochs=1))
    payload = torch.load(tmp_path / "last.pt", weights_only=True)
    payload["training"].update(change)
    torch.save(payload, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is damaged: it has done \d+ batches of 5 otherwise"):
        train(tmp_path, CONFIG, resume=True)


def test_a_run_of_an_older_version_goes_on(tmp_path):
    train(tmp_path, replace(CONFIG, epochs=1))
    payload = torch.load(tmp_path / "last.pt", weights_only=True)
    del payload["training"]["best_without"]
    for row in payload["training"]["history"]:
        del row["kept"]
    torch.save(payload, tmp_path / "last.pt")
    state = train(tmp_path, replace(CONFIG, epochs=2, one_standard_error=True), resume=True)
    assert [row["kept"] for row in state.history] == [None, int(state.history[1]["miou"] > state.history[0]["miou"])]


def test_resuming_a_finished_run_changes_nothing_and_mends_its_table(tmp_path, whole):
    train(tmp_path, COSINE)
    (tmp_path / "metrics.csv").unlink()
    train(tmp_path, COSINE, resume=True)
    assert_same(contents(tmp_path), whole["cosine"])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 4)], ids=str)
def test_a_signal_in_the_middle_of_an_epoch(tmp_path, whole, signum, code, place, capsys):
    before = signal.getsignal(signum)
    stopped = exit_code(lambda: bool(train(tmp_path, COSINE, events={key_of(*place): send(signum)})))
    assert stopped == code
    assert "last.pt" in capsys.readouterr().err.splitlines()[-1]
    assert signal.getsignal(signum) is before
    _, _, state = load_checkpoint(tmp_path / "last.pt")
    assert (state["epoch"], state["batch"]) == (place[0], min(2 * (place[1] // 2 + 1), 5))
    train(tmp_path, COSINE, resume=True)
    assert_same(contents(tmp_path), whole["cosine"])


@pytest.mark.parametrize("call", [1 + 4 + 2, 1 + 4 * EPOCHS], ids=["second epoch", "very last picture"])
def test_a_signal_in_validation(tmp_path, whole, call):
    with pytest.raises(Interrupted):  # one more call is the estimate's
        train(tmp_path, COSINE, val_events={call: send(signal.SIGTERM)})
    assert load_checkpoint(tmp_path / "last.pt")[2]["batch"] == 5
    train(tmp_path, COSINE, resume=True)
    assert_same(contents(tmp_path), whole["cosine"])


def test_a_signal_while_the_last_epoch_is_booked_is_not_lost(tmp_path, monkeypatch, whole):
    log_epoch = RunFolder.log_epoch

    def logged(self, history):
        log_epoch(self, history)
        if len(history) == EPOCHS:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "log_epoch", logged)
    with pytest.raises(Interrupted):
        train(tmp_path, COSINE)
    assert_same(contents(tmp_path), whole["cosine"])


def test_stopping_twice_goes_on_twice(tmp_path, whole):
    for place in ((0, 3), (0, 4), (2, 0)):
        with pytest.raises(Interrupted):
            train(tmp_path, COSINE, events={key_of(*place): send(signal.SIGTERM)}, resume=True)
    train(tmp_path, COSINE, resume=True)
    assert_same(contents(tmp_path), whole["cosine"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_data_workers_change_nothing(tmp_path, whole, stopped):
    config = replace(COSINE, workers=2)
    if stopped:

        def group_signal():
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGTERM)

        with pytest.raises(Interrupted):
            train(tmp_path, config, events={key_of(1, 1): group_signal})
    train(tmp_path, config, resume=stopped)
    assert_same(contents(tmp_path), whole["cosine"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_error_of_any_kind_ends_the_data_workers(tmp_path, monkeypatch):
    def broken(*_):
        assert multiprocessing.active_children()
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(training, "_optimize", broken)
    with pytest.raises(LookupError) as kept:  # with its traceback
        train(tmp_path, replace(COSINE, workers=1))
    assert kept.tb and not multiprocessing.active_children()


# SIGKILL: one child process forks a run for each of these moments, so that torch is imported once.


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_in_epoch_two(self, state, *_):
    if state.epoch == 2:
        _kill()
    RunFolder.former_save_last(self, state, *_)


def _kill_half_written(payload, file):
    if "training" in payload and payload["training"]["epoch"] == 2:
        file.write(b"half a check")
        file.flush()
        _kill()
    torch.former_save(payload, file)


def killed_run(moment, folder):
    torch.set_num_threads(1)
    events = {}
    if moment == "between best and last":
        RunFolder.former_save_last, RunFolder.save_last = RunFolder.save_last, _kill_in_epoch_two
    elif moment == "while last.pt is written":
        torch.former_save, torch.save = torch.save, _kill_half_written
    elif moment == "before metrics.csv":
        RunFolder.log_epoch = lambda self, history: _kill()
    else:
        epoch, batch = map(int, moment.split("."))
        events[key_of(epoch, batch)] = _kill
    train(folder, COSINE, events=events)


MOMENTS = ["0.2", "1.0", "2.3", "3.4", "between best and last", "while last.pt is written", "before metrics.csv"]
SCRIPT = """
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("runs_to_kill", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for i, moment in enumerate(module.MOMENTS):
    child = os.fork()
    if not child:
        module.killed_run(moment, pathlib.Path(sys.argv[2]) / str(i))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", SCRIPT, __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(MOMENTS), done.stderr
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(killed, whole, moment):
    folder = killed / str(MOMENTS.index(moment))
    train(folder, COSINE, resume=True)
    assert_same(contents(folder), whole["cosine"])


def test_resume_in_another_folder_takes_the_best_weights_along(tmp_path):
    train(tmp_path / "a", replace(CONFIG, epochs=1))
    run = RunFolder(tmp_path / "b", tmp_path / "a" / "last.pt")
    fit(Experiment(network(), CARD, Blobs(), Blobs(4), 0, criterion), replace(CONFIG, epochs=1), run, CPU)
    for name in ("best_iou.pt", "best_loss.pt"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "model", "card", "message"),
    [
        (replace(CONFIG, ema=0.0), None, CARD, "--ema"),
        (CONFIG, nn.Conv2d(3, 1, 1), CARD, "another network"),
        (CONFIG, None, replace(CARD, task="other"), "belongs to the task toy"),
    ],
)
def test_resume_refuses_what_does_not_fit(tmp_path, config, model, card, message):
    train(tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ValueError, match=message):
        experiment = Experiment(model or network(), card, Blobs(), Blobs(4), 0, criterion)
        fit(experiment, config, RunFolder(tmp_path, tmp_path / "last.pt"), CPU)


def test_best_weights_cannot_be_resumed(tmp_path):
    state = train(tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ValueError, match=r"give the run's last\.pt"):
        RunFolder(tmp_path, tmp_path / "best_iou.pt").restore(state, "toy")


def test_the_command_line_decides_about_weight_decay(tmp_path):
    train(tmp_path, replace(CONFIG, epochs=1))
    state = train(tmp_path, replace(CONFIG, epochs=1, weight_decay=0.5), resume=True)
    assert state.optimizer.param_groups[0]["weight_decay"] == 0.5


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every optimization step, flat."""
    found = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **options):
        found.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    return found


def test_accumulated_gradients_equal_a_larger_batch(tmp_path, gradients):
    torch.manual_seed(0)
    start = network(norm=False).state_dict()
    weights = []
    for name, batch_size, grad_accum in (("small", 2, 2), ("large", 4, 1)):
        model = network(norm=False)
        model.load_state_dict(start)
        config = TrainConfig(epochs=3, batch_size=batch_size, grad_accum=grad_accum, lr=0.01, seed=1)
        state = train(tmp_path / name, config, model=model, data=Blobs(8))
        assert state.step == 6
        weights.append(state.model.state_dict())
    for key in start:
        torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-6, rtol=1e-6)
        assert not torch.equal(start[key], weights[0][key])
    for small, large in zip(gradients[:6], gradients[6:], strict=True):  # Adam would hide another scale
        torch.testing.assert_close(small, large, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_gradient(tmp_path, gradients):
    train(tmp_path, replace(CONFIG, epochs=1, clip_norm=1e-3))
    assert [float(gradient.norm()) for gradient in gradients] == pytest.approx([1e-3] * 3, rel=1e-2)


def test_a_non_finite_loss_names_the_files(tmp_path, capsys):
    data = Blobs()
    index = key_of(1, 2)[0]
    data.events = {}

    def poison():
        data.images[index] = math.nan

    assert exit_code(lambda: bool(train(tmp_path, data=data, events={key_of(1, 2): poison}))) == NON_FINITE == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"blob{index}.png" in last and "nan" in last and "epoch 2, batch 3" in last
    _, weights, state = load_checkpoint(tmp_path / "last.pt")
    assert state["epoch"] == 1 and all(value.isfinite().all() for value in weights.values())


def test_a_non_finite_loss_in_validation_names_the_file():
    data = Blobs(4)
    data.images[2] = math.inf
    with pytest.raises(NonFiniteLoss, match=r"blob2\.png"):
        evaluate(
            network(),
            validation_loader(data),
            SplitScores(CARD.classes),
            Engine(criterion, foreground_probability, CPU),
        )


def test_evaluation_takes_the_cards_loss_image_by_image():
    torch.manual_seed(0)
    model, data = network(), Blobs(7, ignored=True)
    engine = Engine.of(Experiment(model, replace(CARD, loss=LossRecipe("bce")), Blobs(), Blobs(4)), CPU)
    result = evaluate(model, validation_loader(data), SplitScores(CARD.classes, threshold=0.5), engine).result()
    losses, hits = [], 0
    with torch.inference_mode():
        for image, target in zip(data.images, data.targets, strict=True):
            logits, known = model(image[None])[0, 0], target != 255
            losses.append(float(F.binary_cross_entropy_with_logits(logits[known], target[known].float())))
            hits += int(((logits >= 0) == (target == 1))[known].sum())
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["n_images"] == 7 and result["n_pixels"] == 7 * 64 - 5 * 21
    assert result["pixel_accuracy"] == pytest.approx(hits / result["n_pixels"])


def test_the_best_checkpoints_are_those_of_the_best_epochs(tmp_path, monkeypatch):
    script = iter([(0.2, 1.0), (0.6, 0.9), (0.5, 0.5), (0.6, 0.7), (0.9, 0.1)])

    class Scripted(SplitScores):
        def result(self):
            miou, loss = next(script)
            return {**super().result(), "miou": miou, "loss": loss}

    monkeypatch.setattr(training, "SplitScores", Scripted)
    weights = []
    save_last = RunFolder.save_last

    def remember(self, state, card):
        save_last(self, state, card)
        weights.append(copy.deepcopy(dict(state.average.module.state_dict())))

    monkeypatch.setattr(RunFolder, "save_last", remember)
    state = train(tmp_path, replace(CONFIG, epochs=5, early_stopping=2))
    assert [row["miou"] for row in state.history] == [0.2, 0.6, 0.5, 0.6]  # then two epochs without a better one
    for name, epoch in (("best_iou.pt", 2), ("best_loss.pt", 3)):
        card, saved, training_state = load_checkpoint(tmp_path / name)
        assert card.scores["epoch"] == epoch and not training_state
        assert card.threshold == state.history[epoch - 1]["threshold"]
        assert card.config["batch_size"] == 2
        assert_same(dict(saved), weights[epoch - 1])
    assert not torch.equal(weights[1]["0.weight"], weights[2]["0.weight"])


@pytest.mark.parametrize(("one_standard_error", "kept"), [(False, [1, 1, 0, 0, 0]), (True, [1, 1, 0, 0, 1])])
def test_the_latest_of_epochs_that_the_images_cannot_tell_apart(one_standard_error, kept, tmp_path, monkeypatch):
    mious, others = iter([0.2, 0.60, 0.56, 0.562, 0.563]), iter([[0.2] * 4, [0.60] * 4, [0.55] * 4, OTHER, OTHER])

    class Scripted(SplitScores):
        def result(self):
            return {**super().result(), "miou": next(mious)}

        def without_parts(self):
            return next(others)

    monkeypatch.setattr(training, "SplitScores", Scripted)
    train(tmp_path, replace(CONFIG, epochs=3, one_standard_error=one_standard_error))
    state = train(tmp_path, replace(CONFIG, epochs=5, one_standard_error=one_standard_error), resume=True)
    assert [row["kept"] for row in state.history] == kept
    assert (state.best_iou, state.epochs_without_better) == (0.6, 3)
    assert load_checkpoint(tmp_path / "best_iou.pt")[0].scores["epoch"] == (5 if one_standard_error else 2)


OTHER = [0.60, 0.56, 0.54, 0.56]
"""0, 0.04, 0.06 and 0.04 below 0.60: the variance is 0.000475, the standard error sqrt(3 * 0.000475) = 0.0377."""


def test_an_expired_budget_still_leaves_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "STARTED", budget.STARTED - 1e6)
    state = train(tmp_path, replace(COSINE, max_minutes=1, epochs=1000))
    assert (state.step, len(state.history)) == (1, 1)
    for name in ("best_iou.pt", "best_loss.pt", "last.pt"):
        assert load_checkpoint(tmp_path / name)[0].scores["epoch"] == 1
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_the_budget_ends_the_run_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr("common.training.schedule.time", clock)
    monkeypatch.setattr(budget, "STARTED", 0.0)
    config = replace(CONFIG, max_minutes=10, epochs=1000)
    state = train(tmp_path, config, events={key_of(1, 1): lambda: now.__setitem__(0, 600 - budget.FINISH_SECONDS)})
    assert len(state.history) == 2 and state.step == 3 + 1
    assert load_checkpoint(tmp_path / "last.pt")[2]["epoch"] == 2


@pytest.fixture
def hand(monkeypatch):
    """A clock moved by hand; the process started when it was 0."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr("common.training.schedule.time", clock)
    monkeypatch.setattr(budget, "STARTED", 0.0)
    return now


def wait(now, seconds):
    return lambda: now.__setitem__(0, now[0] + seconds)


def test_slow_validation_keeps_time_free_for_the_next_and_for_the_final_scores(tmp_path, hand):
    slow = {2 + 4 * i: wait(hand, 60) for i in range(10)}  # 15 s an image; the first call is the estimate's
    state = train(tmp_path, replace(CONFIG, max_minutes=10, epochs=1000), val_events=slow)
    scored_as_slowly = 15 * 1.5 * 4
    assert 600 - 2 * 90 - scored_as_slowly - 15 < hand[0] <= 600 - budget.FINISH_SECONDS - scored_as_slowly
    assert len(state.history) == hand[0] / 60 and {row["val_images"] for row in state.history} == {4}


def test_a_validation_that_does_not_fit_is_of_some_images(tmp_path, hand, monkeypatch, capsys):
    monkeypatch.setattr(training, "estimate", lambda *_: SimpleNamespace(image=20.0, step=1.0, epoch=100.0))
    slow = {call: wait(hand, 20) for call in range(1, 9)}
    state = train(tmp_path, replace(CONFIG, max_minutes=3, epochs=1000), val_events=slow)
    assert {row["val_images"] for row in state.history} == {1} and hand[0] <= 180 - budget.FINISH_SECONDS
    assert "1 of 4 validation images, drawn at random: all would take 80 s" in capsys.readouterr().err


def test_a_validation_that_turns_out_slow_is_cut_short(tmp_path, hand, capsys):
    slow = {call: wait(hand, 300) for call in range(3, 9)}
    state = train(tmp_path, replace(CONFIG, max_minutes=10, epochs=1000), val_events=slow)
    assert [row["val_images"] for row in state.history] == [4 - 1]
    assert "3 of 4 validation images judged this epoch" in capsys.readouterr().err


@pytest.mark.parametrize("one_standard_error", [False, True])
def test_an_epoch_judged_by_some_of_the_images_is_not_the_best(one_standard_error, tmp_path, hand, monkeypatch):
    script = iter([(0.2, 1.0), (0.9, 0.1)])

    class Scripted(SplitScores):
        def result(self):
            miou, loss = next(script)
            return {**super().result(), "miou": miou, "loss": loss}

        def without_parts(self):
            return [[0.1, 0.3, 0.2, 0.2], [0.9, 0.3, 0.2, 0.1]][self.n_images < 4]

    monkeypatch.setattr(training, "SplitScores", Scripted)
    config = replace(CONFIG, max_minutes=10, epochs=1000, one_standard_error=one_standard_error)
    state = train(tmp_path, config, val_events={7: wait(hand, 600)})
    assert [(row["val_images"], row["miou"], row["kept"]) for row in state.history] == [(4, 0.2, 1), (2, 0.9, 0)]
    for name in ("best_iou.pt", "best_loss.pt"):
        assert load_checkpoint(tmp_path / name)[0].scores["epoch"] == 1


def test_a_threshold_that_is_given_is_used_and_kept(tmp_path, capsys):
    own = train(tmp_path / "own", replace(CONFIG, epochs=1)).history[0]
    (row,) = train(tmp_path / "given", replace(CONFIG, epochs=1, threshold=0.45)).history
    assert row["threshold"] == 0.45 != own["threshold"] and row["miou"] <= own["miou"]
    assert load_checkpoint(tmp_path / "given" / "best_iou.pt")[0].threshold == 0.45
    with pytest.raises(ValueError, match=r"threshold 1\.5"):
        replace(CONFIG, threshold=1.5)
    many = replace(CARD, classes=["a", "b", "c"], palette={i: (0, 0, i) for i in range(3)})
    run = RunFolder(tmp_path / "many")
    with pytest.raises(ValueError, match="--threshold is for two classes, here are 3"):
        fit(Experiment(network(), many, Blobs(), Blobs(4), 0, criterion), replace(CONFIG, threshold=0.5), run, CPU)
    assert not run.path.exists()


def test_scores_of_the_training_are_of_its_own_predictions(tmp_path):
    """A network that never changes is as good on the training's samples as it is found afterwards."""
    model = network(norm=False)
    config = replace(CONFIG, lr=1e-12, weight_decay=0.0, epochs=1, ema=0.0)
    (row,) = train(tmp_path, config, model=model).history
    data, sampler, counts = Blobs(), EpochBatches(LENGTH, 2, config.seed), np.zeros((2, 2))
    for key in (key for batch in sampler for key in batch):
        sample = data[key]
        with torch.no_grad():
            found = (model(sample["image"][None])[0, 0].sigmoid() >= 0.5).long()
        np.add.at(counts, (sample["target"].numpy(), found.numpy()), 1)
    hits = counts.diagonal()
    assert row["train_accuracy"] == pytest.approx(hits.sum() / counts.sum(), abs=0.01)
    assert row["train_miou"] == pytest.approx((hits / (counts.sum(0) + counts.sum(1) - hits)).mean(), abs=0.01)


def test_progress_follows_steps_or_time_whichever_is_further(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("common.training.schedule.time", SimpleNamespace(monotonic=lambda: now[0]))
    assert Clock(100).progress(25) == 0.25 and not Clock(100).expired
    clock = Clock(100, deadline=10.0, start=0.0, start_progress=0.5)
    assert [clock.progress(step) for step in (0, 60, 200)] == [0.5, 0.6, 1.0]
    now[0] = 5.0
    assert clock.progress(0) == 0.75 and not clock.expired
    now[0] = 10.0
    assert clock.progress(0) == 1.0 and clock.expired


def test_bf16_trains_on_the_cpu(tmp_path):
    seen = set()
    model = network()
    model[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    state = train(
        tmp_path,
        replace(CONFIG, ema=0.0, epochs=6),
        model=model,
        precision=Precision(torch.device("cpu"), torch.bfloat16),
    )
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert state.history[-1]["val_loss"] < state.history[0]["val_loss"]


@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_eager(tmp_path, monkeypatch, whole):
    compiled = Mock(side_effect=functools.partial(torch.compile, backend="eager"))  # without the minute of C++
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("common.training.compiling._missing", lambda device: None)
    train(tmp_path, replace(CONFIG, compile="on"))
    assert compiled.call_count == 1
    assert_same(contents(tmp_path), whole["plateau"])


def test_signal_handlers_are_restored():
    handler = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_loader_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(validation_loader(Blobs(2)))
    assert torch.equal(torch.get_rng_state(), before)
