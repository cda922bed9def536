import csv
import json
import signal
import time

import pytest

from common.checkpoint import load_checkpoint

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


def stored(folder):
    return json.loads((folder / "search.json").read_text())["trials"]


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
