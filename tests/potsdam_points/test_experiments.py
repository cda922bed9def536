import csv
import json

import pytest

from common.command.config import TrainConfig
from common.training.runs import RunFolder
from potsdam_points import experiments
from potsdam_points.experiments import Config, Run, markdown, series, write_results
from potsdam_points.labels import CLASSES
from tests.commands import works_shown


def row(run, points, miou, recipe="best"):
    values = {
        "run": run,
        "recipe": recipe,
        "points": points,
        "class_weights": True,
        "minutes": 5.0,
    }
    per_class = {f"iou_{name}": (miou if name != "low_vegetation" else None) for name in CLASSES}
    return {**values, "epochs": 9, "miou": miou, "pixel_accuracy": 0.9, **per_class}


def test_the_series_holds_every_comparison():
    runs = {run.name: run for run in series((20, 1000))}
    assert list(runs) == [
        "source",
        "source-unweighted",
        "full",
        "points-20",
        "points-1000",
    ]
    assert runs["full"].points == 0
    assert "--no-class-weights" in runs["source-unweighted"].flags()
    assert runs["points-20"].flags()[-3:] == ["--points", "20", "--class-weights"]


def test_table_and_plot_are_written(tmp_path):
    rows = [
        row("source", 1000, 0.4, recipe="source"),
        row("full", "all", 0.8),
        row("points-20", 20, 0.6),
        row("points-1000", 1000, 0.5),
    ]
    write_results(rows, tmp_path)
    table = csv.DictReader((tmp_path / "experiments.csv").read_text().splitlines())
    assert [line["miou"] for line in table] == ["0.4", "0.8", "0.6", "0.5"]
    assert "| points-20 | 20 | yes | 5.0 | 9 | 0.600 | 75% |" in markdown(rows)
    assert "low_vegetation" not in markdown(rows)
    assert (tmp_path / "points_curve.png").stat().st_size > 5000


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"--only best is no run.*points-100"):
        Config(only=("best",))
    with pytest.raises(ValueError, match="--minutes-per-run"):
        Config(minutes_per_run=0)


def test_finished_runs_are_not_repeated_and_stopped_ones_are(call, tmp_path, monkeypatch):
    trained = []

    def fake_row(run, config, folder):
        return row(run.name, run.points or "all", 0.5)

    def fake_process(command, **options):
        folder = command[command.index("--output-dir") + 1]
        trained.append(folder.rsplit("/", 1)[1])
        return type("Done", (), {"returncode": 0 if "full" not in folder else 3})

    monkeypatch.setattr(experiments, "row_of", fake_row)
    monkeypatch.setattr(experiments.subprocess, "run", fake_process)
    flags = ("--curve", 20, "--output-dir", tmp_path / "out")
    RunFolder(tmp_path / "out" / "points-20").create(TrainConfig())  # stopped half-way
    (tmp_path / "out" / "points-20" / "best_iou.pt").write_text("half")
    result = call("experiments", *flags)
    assert result.code == 1 and "4 trainings, 24 min at most in all" in result.err
    assert "run 2 of 4, source-unweighted: 5 min; 18 min to go at most" in result.err
    assert not (tmp_path / "out" / "points-20" / "best_iou.pt").exists()
    assert (tmp_path / "out" / "results" / "experiments.md").is_file()
    assert trained == ["source", "source-unweighted", "full", "points-20"]
    trained.clear()
    assert call("experiments", *flags).code == 1
    assert trained == ["full"]
    trained.clear()
    call("experiments", *flags, "--minutes-per-run", 7).mistake("source had another minutes", "5.0 and not 7.0")
    call("experiments", *flags, "--seed", 1).mistake("another seed")
    (tmp_path / "out" / "source" / "experiment.json").write_text("{}")
    call("experiments", *flags).mistake("experiment.json is damaged")
    assert not trained


def test_the_way_to_the_next_clicks_is_compared_and_shown(call, tmp_path, monkeypatch):
    shown = works_shown(monkeypatch)
    monkeypatch.setattr(experiments.clicks, "STRATEGIES", {"random": experiments.clicks.at_random})
    flags = ("--seeds", 1, "--rounds", 2, "--clicks", 12, "--pool", 2, "--output-dir", tmp_path / "out")
    result = call("experiments", "--active", *flags)
    assert result.code == 0 and "| random |" in result.out, result.err
    table = (tmp_path / "out" / "results" / "active_generated.csv").read_text().splitlines()
    assert table[0] == "strategy,seed,full,12,24" and len(table) == 2
    twice = ["generating pictures", "generating pictures", "looking at pictures", "looking at pictures"]
    assert shown == [(what, True) for what in (*twice, "simulating sessions")]


@pytest.mark.parametrize("name", ["full", "source", "points-20"])
def test_folders_that_no_training_made_are_left_alone(call, tmp_path, monkeypatch, name):
    monkeypatch.setattr(experiments.subprocess, "run", lambda *args, **options: pytest.fail("it began"))
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "thesis.txt").write_text("mine")
    call("experiments", "--curve", 20, "--output-dir", tmp_path / "out").mistake(f"{name} is in the way", "move it")
    assert (tmp_path / "out" / name / "thesis.txt").read_text() == "mine"


def test_tables_of_others_are_left_alone(call, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.subprocess, "run", lambda *args, **options: pytest.fail("it began"))
    (tmp_path / "experiments.csv").write_text("mine")
    call("experiments", "--output-dir", tmp_path / "out", "--results-dir", tmp_path).mistake(
        "--results-dir", "not empty"
    )
    assert (tmp_path / "experiments.csv").read_text() == "mine"


def test_the_curve_leaves_the_sources_points_alone():
    for curve in ((5,), (20, 100), (20, 50000)):
        assert [run.points for run in series(curve)[:3]] == [20000, 20000, 0]


def test_a_run_of_the_series_is_measured(trained, tmp_path):
    result = experiments.row_of(Run("points-60", "best", 60), Config(), trained[0])
    with (trained[0] / "metrics.csv").open() as file:
        assert result["miou"] == max(float(r["miou"]) for r in csv.DictReader(file))
    assert json.loads(json.dumps(result)) == result
