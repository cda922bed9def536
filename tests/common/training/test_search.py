import itertools
import json
import math
import os

import numpy as np
import pytest

from common.training.search import Choice, Range, Space, Storage, Trial, propose, ranked, read_space

SPACE = Space(
    {"arch": Choice(("a", "b", "c")), "lr": Range(1e-4, 1e-1, log=True), "width": Range(2, 5, whole=True)},
    {"epochs": "3"},
)
ENGINES = ("optuna", "hyperopt")


def score(params):
    """Best at arch b and lr 1e-2."""
    return float((params["arch"] == "b") - abs(np.log10(params["lr"]) + 2) / 2)


def run(engine, trials, count, seed=0):
    trials = list(trials)
    while len(trials) < count:
        params = next(propose(engine, SPACE, trials, seed)).params
        trials.append(Trial(len(trials), engine, params, "complete", score(params), [score(params)]))
    return trials


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_proposed_follows_from_seed_and_past(engine):
    whole = run(engine, [], 8)
    assert run(engine, whole[:5], 8) == whole
    assert [trial.params for trial in run(engine, [], 4, seed=1)] != [trial.params for trial in whole[:4]]
    for trial in whole:
        assert trial.params["arch"] in ("a", "b", "c") and 1e-4 <= trial.params["lr"] <= 1e-1
        assert trial.params["width"] in (2, 3, 4, 5) and isinstance(trial.params["width"], int)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_learn_from_the_past(engine):
    values = [trial.value for trial in run(engine, [], 25)]
    assert np.mean(values[15:]) > np.mean(values[:5]) + 0.2


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_proposed_twice_and_a_space_can_be_used_up(engine):
    space = Space({"arch": Choice(("a", "b")), "width": Range(1, 3, whole=True)}, {})
    assert space.size() == 6
    trials = []
    while (proposal := next(propose(engine, space, trials, 0), None)) is not None:
        trials.append(Trial(len(trials), engine, proposal.params, "complete", 0.5, [0.5]))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == len(trials) == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_pruned_and_failed_trials_do_no_harm(engine):
    past = run(engine, [], 4)
    past[1].state, past[1].value = "pruned", 0.1
    past[2].state, past[2].value, past[2].course = "failed", None, []
    assert next(propose(engine, SPACE, past, 0)).params


def test_optuna_prunes_what_is_worse_than_the_median():
    past = run("optuna", [], 6)
    for trial in past:
        trial.course = [0.5, 0.6, 0.7]
    hopeless, hopeful = (next(propose("optuna", SPACE, past, 0)) for _ in range(2))
    assert not hopeless.is_hopeless(1, 0.1) and hopeless.is_hopeless(2, 0.2)
    assert not hopeful.is_hopeless(1, 0.6) and not hopeful.is_hopeless(2, 0.7)
    few = next(propose("optuna", SPACE, past[:2], 0))
    assert not few.is_hopeless(1, 0.1) and not few.is_hopeless(2, 0.1)
    assert not next(propose("hyperopt", SPACE, past, 0)).is_hopeless(2, 0.0)


def test_the_storage_is_read_back_and_belongs_to_one_search(tmp_path):
    path, trials = tmp_path / "deep" / "s.json", run("optuna", [], 2)
    storage = Storage(path, {"space": "x", "data": "y"})
    for trial in trials:
        storage.add(trial)
    assert Storage(path, {"space": "x", "data": "y"}).trials == trials
    with pytest.raises(ValueError, match="another data"):
        Storage(path, {"space": "x", "data": "z"})
    with storage.locked(), pytest.raises(ValueError, match="works on it"), Storage(path, {}).locked():
        pass
    with storage.locked():
        pass


@pytest.mark.parametrize(
    "change",
    [{"number": 5}, {"state": "odd"}, {"params": None}, {"params": {"other": 1}}, {"value": "a"}, {"value": math.nan},
     {"course": "abc"}, {"course": 3}, {"seconds": None}, {"unknown": 1}],
)  # fmt: skip
def test_a_storage_that_a_hand_changed_is_refused_in_a_line(tmp_path, change):
    path = tmp_path / "s.json"
    storage = Storage(path, {})
    for trial in run("optuna", [], 2):
        storage.add(trial)
    content = json.loads(path.read_text())
    content["trials"][1] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"s\.json is no storage of a search .*; choose another file"):
        Storage(path, {})


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "3", '{"trials": 3, "settings": {}}', '{"trials": []}'])
def test_another_file_is_no_storage(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match="no storage of a search"):
        Storage(tmp_path / "s.json", {})


def test_a_pipe_is_no_storage(tmp_path):
    os.mkfifo(tmp_path / "s.json")
    with pytest.raises(ValueError, match="no regular file"):
        Storage(tmp_path / "s.json", {})


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_are_drawn_evenly_or_evenly_in_their_logarithm(engine):
    space = Space(
        {
            "log": Range(1e-6, 1, log=True), "even": Range(0, 1), "steps": Range(1, 1000, log=True, whole=True),
            "few": Range(1, 3, whole=True),
        },
        {},
    )  # fmt: skip
    drawn = [next(propose(engine, space, [], seed)).params for seed in range(120)]
    below = {name: np.mean([params[name] < limit for params in drawn])
             for name, limit in (("log", 1e-3), ("even", 0.5), ("steps", 30), ("few", 2))}  # fmt: skip
    assert all(0.35 < below[name] < 0.65 for name in ("log", "even", "steps"))
    assert 0.22 < below["few"] < 0.45 and 0.22 < np.mean([params["few"] > 2 for params in drawn]) < 0.45
    assert all(isinstance(params["steps"], int) and 1 <= params["steps"] <= 1000 for params in drawn)


def test_numbers_stay_within_their_bounds_to_five_digits():
    assert Range(1.23454, 2).number(1.23454) == 1.23454 and Range(0, 1.999999).number(1.999999) == 1.999999
    assert Range(0, 1).number(0.123456789) == 0.12346
    assert Range(1, 3, whole=True).number(0.6) == 1 and Range(1, 3, whole=True).number(3.4) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_every_trial_has_a_draw_of_its_own(engine):
    """Trials that failed teach nothing; the next one is another all the same."""
    trials = []
    for number in range(3):
        params = next(propose(engine, Space({"lr": Range(0, 1)}, {}), trials, 0)).params
        trials.append(Trial(number, engine, params, "failed"))
    first = [trial.params["lr"] for trial in trials]
    fresh = next(propose(engine, Space({"lr": Range(0, 1)}, {}), [], 0)).params["lr"]
    assert len(set(first)) == 3 and first[0] == fresh
    again = list(itertools.islice(propose(engine, Space({"lr": Range(0, 1)}, {}), [], 0), 2))[1].params["lr"]
    assert again not in first[1:], "not what was passed over before"


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_avoid_the_choice_that_did_badly(engine):
    space = Space({"arch": Choice(("good", "bad", "worse")), "lr": Range(0, 1)}, {})
    values = {"good": 0.9, "bad": 0.2, "worse": 0.1}
    trials = [
        Trial(number, engine, {"arch": arch, "lr": number / 40}, "complete", values[arch], [values[arch]])
        for number, arch in enumerate(["good", "bad", "worse"] * 10)
    ]
    proposed = [next(propose(engine, space, trials, seed)).params["arch"] for seed in range(30)]
    assert proposed.count("good") > 17


def test_hyperopt_takes_a_failed_trial_for_no_success():
    space = Space({"arch": Choice(("fails", "good", "bad")), "lr": Range(0, 1)}, {})
    values = {"good": 0.6, "bad": 0.5}
    trials = [
        Trial(number, "hyperopt", {"arch": arch, "lr": number / 40}, "complete" if arch in values else "failed",
              values.get(arch))
        for number, arch in enumerate(["fails", "good", "bad"] * 10)
    ]  # fmt: skip
    proposed = [next(propose("hyperopt", space, trials, seed)).params["arch"] for seed in range(30)]
    assert proposed.count("good") > proposed.count("fails")


def test_courses_are_compared_epoch_by_epoch():
    past = run("optuna", [], 6)
    for trial in past:
        trial.course = [0.1, 0.1, 0.5, 0.9]
    proposal = next(propose("optuna", SPACE, past, 0))
    assert [proposal.is_hopeless(epoch, 0.3) for epoch in (1, 2, 3)] == [False, False, True]


def test_the_best_trial(tmp_path):
    storage = Storage(tmp_path / "s.json", {})
    assert storage.best() is None
    storage.add(Trial(0, "optuna", {}, "failed"))
    assert storage.best() is None
    storage.add(Trial(1, "optuna", {}, "pruned", 0.9))
    storage.add(Trial(2, "optuna", {}, "complete", 0.2))
    assert storage.best().number == 2


def test_settings_are_compared_as_they_are_stored(tmp_path):
    settings = {"space": {"a": 1}, "sizes": (1, 2)}  # a tuple is a list in JSON
    Storage(tmp_path / "s.json", settings).add(Trial(0, "optuna", {}, "failed"))
    assert len(Storage(tmp_path / "s.json", settings).trials) == 1
    with pytest.raises(ValueError, match="another sizes"):
        Storage(tmp_path / "s.json", settings | {"sizes": (1, 3)})


def test_ranks():
    trials = [
        Trial(0, "optuna", {}, "complete", 0.3),
        Trial(1, "optuna", {}, "failed"),
        Trial(2, "optuna", {}, "pruned", 0.6),
        Trial(3, "optuna", {}, "complete", 0.7),
    ]
    assert [trial.number for trial in ranked(trials)] == [3, 0, 2, 1]


def test_spaces_are_read_as_text_and_checked(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("arch: [unet, fpn]\nlr: {low: 1e-4, high: 1e-2, log: true}\nn: {low: 1, high: 4}\nepochs: 5\n")
    space = read_space(path)
    assert space.searched == {
        "arch": Choice(("unet", "fpn")), "lr": Range(1e-4, 1e-2, True), "n": Range(1, 4, whole=True)
    }  # fmt: skip
    assert space.fixed == {"epochs": "5"} and space.size() == float("inf")
    path.write_text("arch: [b, a, b]\nshift: {low: -3, high: 2}\nrate: {low: 0, high: 1, log: false}\n")
    assert read_space(path).searched == {
        "arch": Choice(("b", "a")), "shift": Range(-3, 2, whole=True), "rate": Range(0, 1, whole=True)
    }  # fmt: skip
    for text in (
        "lr: {low: 0, high: 1, log: true}", "lr: {low: 2, high: 1}", "lr: {min: 1, max: 2}", "a: []", "- a",
        "lr: {low: 1, high: 2, step: 1}", "lr: {low: 1, high: .inf}", "lr: {low: 1, high: inf}",
        "lr: {low: a, high: 1}", "lr: {low: 1}", "lr: {low: [1], high: 2}", "lr: {low: 1, high: 1}",
        "a: [1, [2]]", "a: [",
    ):  # fmt: skip
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match=r"space\.yaml"):
            read_space(path)
    with pytest.raises(FileNotFoundError, match="--space"):
        read_space(tmp_path / "no.yaml")
