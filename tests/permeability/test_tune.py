import csv
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from common.command.cli import STARTED, NonFiniteLoss, exit_code
from common.command.config import read_yaml
from common.losses import LossRecipe, build_loss
from common.networks.checkpoint import load_checkpoint
from common.training import tune as core
from common.training.budget import FINISH_SECONDS
from common.training.runs import RunFolder, load_train_config, own_folder
from common.training.search import Storage
from permeability import tune

SPACE = """
arch: [fpn, unetplusplus, pspnet]
encoder: [resnet18, mit_b0]
loss: [ce+dice, focal]
lr: {low: 1e-4, high: 1e-2, log: true}
batch_size: [2, 4]
crop_size: 64
samples_per_epoch: 8
epochs: 2
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def flags(easy, space, engine, trials, folder):
    recipe = folder / "recipe.yaml"
    recipe.write_text("normalization: measured\n")
    return (
        "--engine", engine, "--trials", trials, "--storage", folder / "search.json", "--space", space, "--config",
        recipe, "--data-root", easy, "--output-dir", folder / "search",
    )  # fmt: skip


def stored(folder, name="search"):
    return json.loads((folder / f"{name}.json").read_text())["trials"]


def test_a_search_killed_in_the_middle_goes_on_and_no_trial_is_done_twice(easy, space, started, call, tmp_path):
    command = flags(easy, space, "optuna", 4, tmp_path)
    process = started("tune", *command, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "search" / "trial_001").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = stored(tmp_path)
    assert 0 < len(before) < 4
    result = call("tune", *command)
    assert result.code == 0, result.err
    trials = stored(tmp_path)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3] and trials[: len(before)] == before
    assert len({json.dumps(trial["params"], sort_keys=True) for trial in trials}) == 4
    again = call("tune", *command)
    assert again.code == 0 and stored(tmp_path) == trials
    with (tmp_path / "search" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    complete = [float(row["miou"]) for row in rows if row["state"] == "complete"]
    assert len(rows) == 4 and complete == sorted(complete, reverse=True)
    best = max((t for t in trials if t["state"] == "complete"), key=lambda trial: trial["value"])
    card, _, _ = load_checkpoint(tmp_path / "search" / "best.pt", "permeability")
    assert (card.arch, card.scores["miou"]) == (best["params"]["arch"], best["value"])
    assert str(rows[0]["trial"]) == str(best["number"]) and f"trial {best['number']}" in result.err
    assert len(list((tmp_path / "search" / "hparams").glob("trial_*/events*"))) == 4
    assert not list((tmp_path / "search").glob("trial_*/*.pt"))


def test_hyperopt_goes_on_with_what_is_stored(easy, space, call, tmp_path):
    assert call("tune", *flags(easy, space, "hyperopt", 1, tmp_path)).code == 0
    first = stored(tmp_path)
    result = call("tune", *flags(easy, space, "hyperopt", 2, tmp_path))
    assert result.code == 0, result.err
    assert len(stored(tmp_path)) == 2 and stored(tmp_path)[:1] == first and "after 1 trials" in result.err


def test_mistakes_are_told(easy, space, call, tmp_path):
    command = flags(easy, space, "optuna", 1, tmp_path)

    def told(text, *words):
        space.write_text(text)
        call("tune", *command).mistake(*words)

    told("arch: [fpn, nonet]\n", "nonet")
    told("arx: [fpn]\n", "arx")
    told("lr: {low: 1, high: 0.1}\n", "lr", "low")
    told("lr: 1e-3\n", "nothing to search")
    told("loss: [ce, wrong]\narch: [fpn]\n", "wrong")
    call("tune", *command[:-2], "--trials", 0).mistake("--trials")
    (tmp_path / "search.json").write_text("{}")
    space.write_text(SPACE)
    call("tune", *command).mistake("search.json", "another file")


class FakeTraining:
    """In place of a training: each trial has the course, or ends with the error, that its learning rate stands for."""

    def __init__(self, courses):
        self.courses, self.seen = courses, []

    def __call__(self, experiment, wanted, run, precision):
        self.seen.append((wanted, experiment, precision))
        course = self.courses[len(self.seen) - 1]
        if isinstance(course, Exception):
            raise course
        assert not run.path.exists(), "a trial that was cut short begins anew"
        run.create(wanted)
        (run.path / "best_iou.pt").write_text(f"best of training {len(self.seen)}")
        history = []
        for epoch, score in enumerate(course, start=1):
            miou, kept = score if isinstance(score, tuple) else (score, int(score == max(course[:epoch])))
            history.append({"epoch": epoch, "miou": miou, "kept": kept})
            run.log_epoch(history)
        run.close()


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Run a search whose trainings are faked; returns the result and what the trainings were told."""

    def run(
        courses, *more, engine="hyperopt", text="arch: [fpn]\nlr: {low: 1e-4, high: 1e-2}\nepochs: 4\n", count=None
    ):
        fake = FakeTraining(courses)
        monkeypatch.setattr(core, "fit", fake)
        monkeypatch.setattr(tune.train, "build", lambda config, data: ("built from", config, data))
        monkeypatch.setattr(tune.train, "load_data", lambda config: ("data of", config))
        monkeypatch.setattr(core, "log_hparams", lambda folder, trial: None)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "space.yaml").write_text(text)
        (tmp_path / "recipe.yaml").write_text("lr: 0.5\nepochs: 7\nloss: ce+dice\nlabel_smoothing: 0.25\n")
        argv = ["tune", "--engine", engine, "--trials", count or len(courses), "--storage", "s.json", "--space",
                "space.yaml", "--config", "recipe.yaml", "--data-root", "there", "--output-dir", "out",
                *more]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        return exit_code(tune.main), fake.seen

    return run


def table(folder):
    with (folder / "out" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_trial_is_judged_by_its_best_epoch(search, tmp_path):
    code, _ = search([[0.2, 0.7, 0.4], [0.5, 0.6, 0.65], [0.1, 0.1, 0.3]])
    assert code == 0
    assert [trial["value"] for trial in stored(tmp_path, "s")] == [0.7, 0.65, 0.3]
    assert stored(tmp_path, "s")[0]["course"] == [0.2, 0.7, 0.4]
    assert (tmp_path / "out" / "best.pt").read_text() == "best of training 1", "the others were worse"
    assert [(row["rank"], row["trial"], row["miou"]) for row in table(tmp_path)] == [
        ("1", "0", "0.7000"), ("2", "1", "0.6500"), ("3", "2", "0.3000")
    ]  # fmt: skip
    assert not list((tmp_path / "out").glob("trial_*/*.pt"))


def test_a_trial_is_judged_by_the_network_it_keeps(search, tmp_path):
    search([[(0.6, 1), (0.58, 1), (0.9, 0)], [(0.5, 1), (0.59, 1)]])
    assert [trial["value"] for trial in stored(tmp_path, "s")] == [0.58, 0.59]
    assert (tmp_path / "out" / "best.pt").read_text() == "best of training 2"


def test_the_best_trial_is_a_recipe_for_train(search, tmp_path, capsys):
    code, seen = search([[0.2], [0.9], [0.5]])
    assert code == 0 and "train.py --config out/best.yaml" in capsys.readouterr().err
    text = (tmp_path / "out" / "best.yaml").read_text()
    assert text.startswith("# The best of s.json: trial 1, validation mIoU 0.9000.\nrecipe: none\n")
    assert "lr: '" not in text, "numbers are written as such"
    home = Path(tune.__file__).parent
    again = load_train_config(tune.train.Config, home, ["--config", "out/best.yaml", "--data-root", "there"])
    changed = {"output_dir", "config", "recipe"}
    won = {name: value for name, value in vars(seen[1][0]).items() if name not in changed}
    assert {name: value for name, value in vars(again).items() if name not in changed} == won
    assert again.lr != seen[0][0].lr and again.label_smoothing == 0.25


@pytest.mark.parametrize(
    "value", ["1e-4", "0.003", "off", "0.3*ce+0.7*dice", "none", "True", ["16", "32"], "1_000", ""]
)
def test_values_of_recipes_read_back_as_they_were(value, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"key": core.plain_value(value)}))
    assert read_yaml(path) == {"key": value}


def test_a_later_better_trial_takes_the_place_of_the_best(search, tmp_path):
    assert search([[0.2], [0.9], [0.5]])[0] == 0
    assert (tmp_path / "out" / "best.pt").read_text() == "best of training 2"


def test_hopeless_trials_end_early_but_not_in_their_last_epoch(search, tmp_path):
    good, bad, late = [0.7, 0.7, 0.7, 0.9], [0.6, 0.5, 0.9, 0.9], [0.7, 0.75, 0.75, 0.75]
    code, seen = search([good] * 4 + [bad, late], engine="optuna")
    assert code == 0 and len(seen) == 6
    trials = stored(tmp_path, "s")
    assert [trial["state"] for trial in trials] == ["complete"] * 4 + ["pruned", "complete"]
    assert (trials[4]["course"], trials[4]["value"]) == ([0.6, 0.5], 0.6)
    assert [row["trial"] for row in table(tmp_path)][-1] == "4" and table(tmp_path)[-1]["epochs"] == "2"


def test_pruned_trials_count_and_are_best_only_among_themselves(search, tmp_path, monkeypatch):
    def propose(engine, space, trials, seed):
        yield SimpleNamespace(params={"lr": 1e-3 * (1 + len(trials))}, is_hopeless=lambda epoch, value: value > 0.5)

    monkeypatch.setattr(core, "propose", propose)
    code, seen = search([[0.9, 0.9], [0.3, 0.3], [0.8, 0.8]])
    assert code == 0 and len(seen) == 3
    assert [trial["state"] for trial in stored(tmp_path, "s")] == ["pruned", "complete", "pruned"]
    assert (tmp_path / "out" / "best.pt").read_text() == "best of training 2"


def test_a_failed_trial_is_noted_and_the_search_goes_on(search, tmp_path):
    errors = [ValueError("no\nsense"), NonFiniteLoss("nan in x.tif"), torch.OutOfMemoryError("too large")]
    code, _ = search([*errors, [0.4]])
    assert code == 0
    trials = stored(tmp_path, "s")
    assert [trial["state"] for trial in trials] == ["failed"] * 3 + ["complete"]
    assert [trial["note"] for trial in trials[:3]] == ["no sense", "nan in x.tif", "too large"]
    assert trials[0]["value"] is None and table(tmp_path)[-1]["miou"] == "-"


def test_a_mistake_in_the_code_is_no_failed_trial(search, tmp_path):
    with pytest.raises(ZeroDivisionError):
        search([ZeroDivisionError()])
    assert not (tmp_path / "s.json").exists()


def test_a_search_without_success_is_an_error(search, tmp_path, capsys):
    code, _ = search([ValueError("first"), ValueError("second")])
    assert code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "none of the 2 trials" in line and "first" in line


def test_trainings_are_told_what_the_search_was(search, tmp_path):
    """The trial's parameters rank above the space's fixed ones, these above the recipe."""
    folder = tmp_path / "out" / "trial_001"
    own_folder(folder.parent, f"the search of {tmp_path / 's.json'}")
    RunFolder(folder).create(tune.train.Config())  # left over from a search that was killed
    code, seen = search(
        [[0.1], [0.2]], "--seed", 5, "--workers", 1, "--device", "cpu", "--amp", "off", "--skip-bad",
        "--minutes-per-trial", 3,
    )  # fmt: skip
    assert code == 0
    for number, (wanted, (_, built, data), precision) in enumerate(seen):
        assert built is wanted
        assert 1e-4 <= wanted.lr <= 1e-2 and (wanted.epochs, wanted.label_smoothing) == (4, 0.25)
        assert (wanted.seed, wanted.workers, wanted.device, wanted.amp) == (5, 1, "cpu", "off")
        assert wanted.skip_bad and str(wanted.output_dir) == f"out/trial_{number:03d}"
        assert str(wanted.data_root) == "there" and data[0] == "data of" and data[1].skip_bad
        spent = (time.monotonic() - STARTED + FINISH_SECONDS) / 60
        assert spent + 2 < wanted.max_minutes < spent + 3.1
        assert str(precision.device) == "cpu"
        logits, target = torch.randn(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long)
        loss = LossRecipe.of_config(vars(wanted)).build()
        assert torch.isclose(loss(logits, target), build_loss("ce+dice", label_smoothing=0.25)(logits, target))
    assert [trial["params"]["lr"] for trial in stored(tmp_path, "s")] == [wanted.lr for wanted, *_ in seen]
    assert len({wanted.lr for wanted, *_ in seen}) == 2


def test_proposals_follow_the_seed_and_the_engine(search, tmp_path):
    drawn = set()
    for more in (("--seed", 0), ("--seed", 1)):
        for engine in ("optuna", "hyperopt"):
            (tmp_path / "s.json").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert search([[0.1]], *more, engine=engine)[0] == 0
            drawn.add(stored(tmp_path, "s")[0]["params"]["lr"])
    assert len(drawn) == 4


def test_no_more_trials_than_asked_for(search, tmp_path):
    assert search([[0.1], [0.2]])[0] == 0
    code, seen = search([[0.3]], count=3)
    assert code == 0 and len(seen) == 1 and len(stored(tmp_path, "s")) == 3
    code, seen = search([], count=2)
    assert code == 0 and not seen and len(stored(tmp_path, "s")) == 3


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"text": "arch: [fpn]\nlr: {low: 1e-4, high: 1e-1}\nepochs: 4\n"}, "another space"),
        ({"text": "arch: [fpn]\nlr: {low: 1e-4, high: 1e-2}\nepochs: 5\n"}, "another recipe"),
        ({"more": ("--data-root", "elsewhere")}, "another data"),
        ({"more": ("--minutes-per-trial", "2")}, "another minutes per trial"),
    ],
)
def test_a_storage_of_another_search_is_refused(search, tmp_path, capsys, changed, word):
    assert search([[0.1]])[0] == 0
    before = stored(tmp_path, "s")
    changed = dict(changed)
    code, seen = search([[0.2]], *changed.pop("more", ()), count=2, **changed)
    assert code == 2 and not seen and stored(tmp_path, "s") == before and word in capsys.readouterr().err


def test_networks_that_do_not_exist_are_passed_over(search, tmp_path):
    """Of four combinations, linknet takes no Mix Transformer; the three others use the space up."""
    text = "arch: [linknet, fpn]\nencoder: [mit_b0, resnet18]\n"
    code, seen = search([[0.1], [0.2], [0.3]], text=text, count=5)
    assert code == 0
    pairs = [(wanted.arch, wanted.encoder) for wanted, *_ in seen]
    assert sorted(pairs) == [("fpn", "mit_b0"), ("fpn", "resnet18"), ("linknet", "resnet18")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate: [1e-3]\n", ("learning_rate",)),
        ("lr: [1e-3, fast]\n", ("lr", "fast")),
        ("balance: {low: 0.5, high: 1.5}\n", ("--balance 1.5",)),
        ("crop_size: {low: 8, high: 64}\n", ("--crop-size 8",)),
        ("arch: [fpn]\nepochs: many\n", ("epochs", "many")),
        ("lr: {low: 1e-2, high: 1e-3}\n", ("space.yaml: lr", "L < H")),
        ("lr: {low: 0, high: 1e-3, log: true}\n", ("space.yaml: lr", "L > 0 for log")),
        ("a: [\n", ("space.yaml is not valid YAML",)),
        ("loss: [ce, mse]\n", ("unknown loss 'mse'", "focal")),
        ("lr: [1e-3]\nloss: mse\n", ("unknown loss 'mse'",)),
        ("lr: [1e-3, 1e-2]\nseed: [1, 2]\n", ("seed", "flag of tune.py")),
        ("lr: [1e-3, 1e-2]\noutput_dir: x\n", ("output_dir",)),
    ],
)
def test_mistakes_in_the_space_are_told_before_the_first_trial(search, tmp_path, capsys, text, words):
    code, seen = search([[0.1]], text=text)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and not seen and not (tmp_path / "s.json").exists()
    for word in words:
        assert word in line


def test_an_unknown_engine_is_told(search, capsys):
    code, seen = search([[0.1]], engine="random")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and not seen and "random" in line and "optuna" in line


def test_two_searches_do_not_share_a_storage(search, tmp_path, capsys):
    with Storage(tmp_path / "s.json", {}).locked():
        code, seen = search([[0.1]])
    assert code == 2 and not seen and "s.json: process" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["optuna", "hyperopt"])
def test_a_library_that_is_not_installed_is_told(search, monkeypatch, capsys, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    code, seen = search([[0.1]], engine=engine)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and not seen and f"--engine {engine}" in line and f"pip install {engine}" in line


def test_a_space_without_any_network_is_told(search, capsys):
    code, seen = search([[0.1]], text="arch: [linknet]\nencoder: [mit_b0]\n")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and not seen and "no network that exists" in line


def test_a_search_writes_into_a_folder_of_its_own_alone(easy, space, call, tmp_path):
    command = flags(easy, space, "optuna", 1, tmp_path)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "best.pt").write_text("mine")
    call("tune", *command).mistake("--output-dir", "search is not empty")
    assert (tmp_path / "search" / "best.pt").read_text() == "mine" and not (tmp_path / "search.json").exists()
    own_folder(tmp_path / "other", f"the search of {tmp_path / 'another.json'}")
    call("tune", *command[:-1], tmp_path / "other").mistake("belongs to the search of", "another.json", "search.json")


def test_a_trial_of_others_is_left_alone(tmp_path):
    (tmp_path / "trial_000").mkdir()
    (tmp_path / "trial_000" / "a.pt").write_text("mine")
    with pytest.raises(ValueError, match="trial_000 is in the way"):
        core.run_trial(SimpleNamespace(folder=tmp_path, config=None), SimpleNamespace(trials=[]), None, None)
    assert (tmp_path / "trial_000" / "a.pt").read_text() == "mine"
