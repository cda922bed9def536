"""Run folders: which one a command writes, resumes or reads."""

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from common.command.cli import exit_code
from common.command.config import TrainConfig
from common.networks.checkpoint import newest_checkpoint
from common.training.runs import RunFolder, load_train_config, open_run, write_history


@dataclass(frozen=True)
class Config(TrainConfig):
    """A task's flags."""

    arch: str = "unet"
    """Network."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a task's recipes."""
    monkeypatch.chdir(tmp_path)
    task = tmp_path / "toy"
    task.mkdir()
    (task / "demo.yaml").write_text("epochs: 2\narch: demo\n")
    (task / "source.yaml").write_text("epochs: 50\narch: source\n")
    return task


def made(name, *files, age=0.0):
    path = Path(name)
    path.mkdir(parents=True)
    for file in files:
        (path / file).write_text("x")
        os.utime(path / file, (1e9 - age, 1e9 - age))
    return path


def opened(output_dir=None, resume=None, demo=False):
    return open_run("toy", output_dir=output_dir and Path(output_dir), resume=resume, demo=demo)


def test_new_runs_get_folders_of_their_own():
    demo, real = opened(demo=True), opened()
    assert demo.path.parent == real.path.parent == Path("runs/toy")
    assert demo.path.name.startswith("demo-2") and real.path.name.startswith("2") and real.resume_from is None
    assert not real.path.exists()


def test_two_runs_of_one_second_do_not_share_a_folder(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20240101-000000")
    paths = []
    for _ in range(3):
        run = opened()
        run.create(Config())
        paths.append(run.path.name)
    assert paths == ["20240101-000000", "20240101-000000-2", "20240101-000000-3"]
    assert (run.path / "config.yaml").is_file()


def test_an_output_folder_that_is_not_empty_is_refused(capsys):
    made("full", "a.txt")
    made("empty")
    Path("file").write_text("x")
    assert opened("empty").path == Path("empty") and opened("new").path == Path("new")
    for name in ("full", "file"):
        assert exit_code(lambda name=name: bool(opened(name))) == 2
        err = capsys.readouterr().err
        assert f"--output-dir {name} is not empty" in err and "--resume auto" in err


def test_resume_auto_without_a_run_starts_anew_and_says_so(capsys):
    made("out", "config.yaml")
    for output_dir in (None, "out", "new"):
        assert opened(output_dir, "auto").resume_from is None
        assert "nothing to resume: starting anew" in capsys.readouterr().err


def test_resume_auto_takes_the_output_folder_or_the_newest_run():
    made("runs/toy/1", "last.pt", age=30)
    made("runs/toy/2", "last.pt", age=20)
    made("runs/toy/3", "best_iou.pt", age=5)
    made("runs/toy/demo-1", "last.pt", age=10)
    made("runs/other/9", "last.pt")
    made("out", "last.pt", age=99)
    assert opened(None, "auto").resume_from == Path("runs/toy/2/last.pt")  # data are named, so not the demo
    run = opened(None, "auto", demo=True)
    assert (run.path, run.resume_from) == (Path("runs/toy/demo-1"), Path("runs/toy/demo-1/last.pt"))
    assert opened("out", "auto").resume_from == Path("out/last.pt")


def test_resume_by_path():
    path = made("runs/toy/1", "last.pt") / "last.pt"
    for name in (str(path), str(path.parent)):
        assert (opened(None, name).resume_from, opened(None, name).path) == (path, path.parent)
    assert opened("elsewhere", str(path)).path == Path("elsewhere")
    with pytest.raises(FileNotFoundError, match="--resume nowhere does not exist"):
        opened(None, "nowhere")


def load(folder, *flags):
    return load_train_config(Config, folder, list(flags))


def test_the_recipe_depends_on_whether_data_are_named(folder):
    Path("own.yaml").write_text("epochs: 9\n")
    Path("data.yaml").write_text("data_root: somewhere\n")
    assert (load(folder).arch, load(folder).epochs, load(folder).has_data) == ("demo", 2, False)
    for flags in (("--data-root", "d"), ("--images=i", "--labels=l"), ("--data_root", "d")):
        config = load(folder, *flags, "--lr", "5")
        assert (config.arch, config.epochs, config.lr, config.has_data) == ("source", 50, 5.0, True)
    assert (load(folder, "--config", "own.yaml").epochs, load(folder, "--config", "own.yaml").arch) == (9, "unet")
    assert load(folder, "--config", "data.yaml").has_data


def saved_run(name, config):
    RunFolder(Path(name)).create(config)
    (Path(name) / "last.pt").write_text("x")


@pytest.mark.parametrize(
    "flags", [("--resume", "auto", "--output-dir", "out"), ("--resume", "out"), ("--resume=out/last.pt",)]
)
def test_resuming_takes_the_runs_own_configuration(folder, flags):
    saved = Config(images=Path("i"), labels=Path("l"), epochs=7, arch="own", output_dir=Path("former"), lr=3.0)
    saved_run("out", saved)
    config = load(folder, *flags, "--epochs", "8")
    assert (config.epochs, config.arch, config.lr, config.images) == (8, "own", 3.0, Path("i"))
    assert config.output_dir == (Path("out") if "--output-dir" in flags else None)
    assert load(folder, *flags, "--images", "j").images == Path("j")  # --labels are the run's
    Path("own.yaml").write_text("epochs: 9\n")
    assert (load(folder, *flags, "--config", "own.yaml").epochs, load(folder, *flags).resume) == (9, config.resume)


def test_resuming_auto_with_data_does_not_take_the_demo(folder):
    saved_run("runs/toy/demo-1", replace(Config(), arch="demo"))
    config = load(folder, "--resume", "auto", "--data-root", "d")
    assert config.arch == "source"
    assert open_run("toy", output_dir=None, resume="auto", demo=not config.has_data).resume_from is None
    assert load(folder, "--resume", "auto").arch == "demo"


def test_a_damaged_saved_configuration_is_named(folder):
    saved_run("out", Config())
    Path("out/config.yaml").write_text("epochz: 3\n")
    with pytest.raises(ValueError, match=r"out/config\.yaml: unknown key 'epochz'"):
        load(folder, "--resume", "out")


def test_the_newest_checkpoint_is_of_the_demo_only_if_there_is_no_other():
    with pytest.raises(FileNotFoundError, match=r"no trained network under runs/toy; .*toy/train\.py.*--checkpoint"):
        newest_checkpoint("toy")
    made("runs/toy/demo-2", "best_iou.pt", age=1)
    made("runs/toy/demo-1", "best_iou.pt", age=2)
    assert newest_checkpoint("toy") == Path("runs/toy/demo-2/best_iou.pt")
    made("runs/toy/1", "best_iou.pt", age=50)
    made("runs/toy/2", "best_iou.pt", age=40)
    made("runs/toy/3", "last.pt")
    assert newest_checkpoint("toy") == Path("runs/toy/2/best_iou.pt")


def test_history_is_a_table_with_empty_cells_for_what_is_undefined(tmp_path):
    write_history(
        tmp_path / "m.csv", [{"epoch": 1, "f1": None, "iou_a,b": 0.1 + 0.2}, {"epoch": 2, "f1": 1.0, "iou_a,b": 1e-9}]
    )
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"epoch": "1", "f1": "", "iou_a,b": "0.30000000000000004"} and float(rows[1]["iou_a,b"]) == 1e-9
