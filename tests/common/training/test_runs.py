"""Run folders: which one a command writes, resumes or reads."""

import csv
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from common.command.cli import exit_code
from common.command.config import TrainConfig, config_values, read_yaml
from common.networks.checkpoint import newest_checkpoint, save_checkpoint
from common.training.runs import MARKER, RunFolder, load_train_config, open_run, remove_run, write_history
from tests.checkpoints import CARD, TRAINING


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


def save_last(path, config=None, split=None):
    card = replace(CARD, task="toy", config=config_values(config or Config()), split=split or CARD.split)
    save_checkpoint(path, card, {"w": torch.zeros(2)}, TRAINING)


def made(name, *files, age=0.0):
    path = Path(name)
    path.mkdir(parents=True)
    for file in files:
        if file == "last.pt":
            save_last(path / file)
        else:
            (path / file).write_text("x")
        os.utime(path / file, (1e9 - age, 1e9 - age))
    return path


def opened(output_dir=None, resume=None, demo=False):
    data = None if demo else Path("data")
    return open_run("toy", Config(data_root=data, output_dir=output_dir and Path(output_dir), resume=resume))


def test_new_runs_get_folders_of_their_own():
    demo, real = opened(demo=True), opened()
    assert demo.path.parent == real.path.parent == Path("runs/toy")
    assert demo.path.name.startswith("demo-2") and real.path.name.startswith("2") and real.resume_from is None
    assert not real.path.exists()


def test_runs_of_one_second_do_not_share_a_folder(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20240101-000000")
    runs = [opened() for _ in range(3)]  # all have chosen before any has made its folder
    for run in runs:
        run.create(Config())
    assert [run.path.name for run in runs] == ["20240101-000000", "20240101-000000-2", "20240101-000000-3"]
    assert all((run.path / "config.yaml").is_file() and (run.path / MARKER).is_file() for run in runs)


def test_runs_that_are_given_one_folder_do_not_share_it_either():
    first, second = opened("out"), opened("out")
    first.create(Config(lr=1.0))
    with pytest.raises(ValueError, match="another training has begun in out"):
        second.create(Config(lr=2.0))
    assert read_yaml(Path("out/config.yaml"))["lr"] == "1.0"


def test_a_folder_for_output_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    for name, words in (("nothing", "link to nothing"), ("nothing/deeper", "link to nothing"), ("file/x", "is a file")):
        with pytest.raises(ValueError, match=f"--output-dir {name}.*{words}"):
            opened(name)


def test_only_a_run_of_ours_is_deleted(tmp_path):
    remove_run(tmp_path / "nothing")
    made("own", "a.txt")
    Path("link").symlink_to(tmp_path / "run")
    opened("run").create(Config())
    for name in ("own", "link"):
        with pytest.raises(ValueError, match=f"{name} is in the way: no training made it"):
            remove_run(Path(name))
    assert Path("own/a.txt").is_file() and Path("run/config.yaml").is_file()
    remove_run(Path("run"))
    assert not Path("run").exists()


def test_an_output_folder_that_is_not_empty_is_refused(capsys):
    made("full", "a.txt")
    made("empty")
    Path("file").write_text("x")
    assert opened("empty").path == Path("empty") and opened("new").path == Path("new")
    for name, words in (("full", "is not empty"), ("file", "is a file")):
        assert exit_code(lambda name=name: bool(opened(name))) == 2
        assert f"--output-dir {name}" in (err := capsys.readouterr().err) and words in err


def test_resume_auto_without_a_run_starts_anew_and_says_so(capsys):
    made("empty")
    for output_dir in (None, "empty", "new"):
        assert opened(output_dir, "auto").resume_from is None
        assert "nothing to resume: starting anew" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_starts_anew_in_its_folder():
    opened("out").create(Config(lr=1.0))
    run = opened("out", "auto")
    assert run.resume_from is None
    run.create(Config(lr=2.0))
    assert read_yaml(Path("out/config.yaml"))["lr"] == "2.0"
    with pytest.raises(ValueError, match="not empty"):
        opened("out")


def test_resuming_into_the_folder_of_others_is_refused():
    made("run", "last.pt")
    made("own", "config.yaml")
    for resume in ("auto", "run"):
        with pytest.raises(ValueError, match="--output-dir own is not empty"):
            opened("own", resume)


def test_resume_auto_takes_the_output_folder_or_the_newest_run():
    made("runs/toy/1", "last.pt", age=30)
    made("runs/toy/2", "last.pt", age=20)
    made("runs/toy/3", "best_iou.pt", age=5)
    made("runs/toy/demo-1", "last.pt", age=10)
    made("runs/other/9", "last.pt")
    made("out", "last.pt", age=99)
    assert opened(None, "auto").resume_from == Path("runs/toy/2/last.pt")  # data are named, so not the demo
    save_last(Path("runs/toy/demo-1/last.pt"))
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
    for flags, arch in (((), "demo"), (("--data-root", "d"), "source"), (("--recipe", "none"), "unet")):
        own = load(folder, "--config", "own.yaml", *flags)
        assert (own.epochs, own.arch) == (9, arch)  # a user's file stands on the recipe
    assert load(folder, "--config", "data.yaml").has_data


def saved_run(name, config):
    RunFolder(Path(name)).create(config)
    save_last(Path(name) / "last.pt", config)


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
    assert open_run("toy", config).resume_from is None
    assert load(folder, "--resume", "auto").arch == "demo"


@pytest.mark.parametrize(("former", "now"), [("false", "off"), ("true", "on")])
def test_a_run_from_before_compile_had_three_values_goes_on(folder, former, now):
    saved_run("out", Config(compile=now, epochs=7))
    save_last(Path("out/last.pt"), replace(Config(), epochs=7, compile=former == "true"))
    text = Path("out/config.yaml").read_text()
    Path("out/config.yaml").write_text(re.sub("compile: .*", f"compile: {former}", text))
    config = load(folder, "--resume", "out")
    assert (config.compile, config.epochs) == (now, 7) and open_run("toy", config).resume_from == Path("out/last.pt")


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


def resumed(saved, **changes):
    save_last(made("out") / "last.pt", saved, {"train": ["a", "b"], "val": ["c"], "test": []})
    return open_run("toy", replace(saved, resume="out", **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "--seed is 1.*trained with 0"),
        ({"val_fraction": 0.2}, "--val-fraction is 0.2"),
        ({"arch": "other"}, "--arch is other.*trained with own"),
        ({"lr": 1.0}, "--lr is 1.0"),
        ({"ema": 0.9}, "--ema is 0.9"),
        ({"weights": "x.pt"}, "--weights is x.pt"),
    ],
)
def test_a_resumed_run_keeps_its_settings(changes, words):
    with pytest.raises(ValueError, match=words + r".*--weights out/last\.pt"):
        resumed(Config(data_root=Path("d"), arch="own"), **changes)


def test_where_how_long_and_on_what_a_run_goes_on_may_change():
    changes = {"data_root": Path("e"), "epochs": 99, "max_minutes": 3.0, "workers": 2, "device": "cpu", "amp": "off"}
    assert resumed(Config(data_root=Path("d")), output_dir=Path("new"), **changes).path == Path("new")


def test_settings_that_a_checkpoint_does_not_know_are_the_defaults():
    saved = Config(data_root=Path("d"))
    card = replace(CARD, task="toy", config={"lr": saved.lr})
    save_checkpoint(made("out") / "last.pt", card, {"w": torch.zeros(2)}, TRAINING)
    assert open_run("toy", replace(saved, resume="out")).resume_from
    with pytest.raises(ValueError, match="--arch is new"):
        open_run("toy", replace(saved, resume="out", arch="new"))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"train": ["a"], "val": ["c"], "test": []}, r"1 of its 3 samples are missing \(b\)"),
        ({"train": ["a", "b"], "val": ["c"], "test": ["d"]}, r"1 samples are new \(d\)"),
        ({"train": ["a", "c"], "val": ["b"], "test": []}, r"2 samples were in another part \(b, c\)"),
    ],
)
def test_a_resumed_run_keeps_its_split(split, words):
    config = Config(data_root=Path("d"))
    run = resumed(config)
    Path("out/config.yaml").write_text("former")
    with pytest.raises(ValueError, match=words + r".*--weights out/last\.pt"):
        run.create(config, split)
    assert Path("out/config.yaml").read_text() == "former"
    run.create(config, {"train": ["b", "a"], "val": ["c"], "test": []})
    assert Path("out/config.yaml").read_text() != "former"


def test_best_weights_alone_cannot_be_resumed():
    save_checkpoint(made("out") / "last.pt", replace(CARD, task="toy"), {"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="best weights only"):
        opened("out", "auto")


def test_a_saved_configuration_starts_another_run(folder):
    run = resumed(Config(data_root=Path("d"), arch="own", lr=3.0))
    run.create(Config(data_root=Path("d"), arch="own", lr=3.0, resume="auto", output_dir=Path("out")))
    assert not {"resume", "output_dir"} & read_yaml(Path("out/config.yaml")).keys()
    config = load(folder, "--config", "out/config.yaml")
    assert (config.arch, config.lr, config.resume, config.output_dir) == ("own", 3.0, None, None)
    Path("old.yaml").write_text("resume: null\noutput_dir: ~\narch: own\n")
    assert (load(folder, "--config", "old.yaml").resume, load(folder, "--config", "old.yaml").arch) == (None, "own")


def test_a_file_names_the_recipe_that_it_stands_on(folder):
    (folder / "best.yaml").write_text("recipe: none\nepochs: 4\nlr: 2\n")
    Path("own.yaml").write_text("recipe: best\nepochs: 9\n")
    config = load(folder, "--config", "own.yaml", "--data-root", "d")
    assert (config.epochs, config.lr, config.arch) == (9, 2.0, "unet")
    assert load(folder, "--config", "own.yaml", "--recipe", "source").arch == "source"
    assert load(folder, "--recipe", "best").lr == 2.0
    complete = load(folder, "--config", str(folder / "best.yaml"), "--data-root", "d")
    assert (complete.arch, complete.epochs) == ("unet", 4)  # a complete recipe stands on nothing
    with pytest.raises(ValueError, match="recipe bst: toy has no such recipe, but best, demo, source, and none"):
        load(folder, "--recipe", "bst")


def test_every_recipe_of_ours_is_complete():
    recipes = [p for p in Path(__file__).parents[3].glob("*/*.yaml") if not p.stem.startswith("space")]
    assert len(recipes) >= 15
    for path in recipes:
        assert read_yaml(path)["recipe"] == "none", path


def test_help_shows_the_defaults_that_one_gets(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    Path("own.yaml").write_text("lr: 0.125\n")
    with pytest.raises(SystemExit) as stop:
        load(folder, "--config", "own.yaml", "--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "Defaults shown are those of own.yaml and toy/source.yaml" in said
    assert "(default: 50)" in said and "(default: 0.125)" in said and "(default: source)" in said


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_says_what_is_kept_and_how_to_go_on(capsys, saved):
    run = opened("out")
    run.create(Config())
    if saved:
        save_last(Path("out/last.pt"))

    def write():
        with run.writing():
            raise OSError(28, "No space left on device", "out/last.pt")

    assert exit_code(write) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the disk is full: ") and "No space left" in said
    assert ("go on with --resume out/last.pt" if saved else "nothing of the run is saved yet") in said


def test_a_full_disk_while_a_checkpoint_is_written_is_named_as_such(monkeypatch):
    def write(payload, file):
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")  # what torch's writer says on its way out

    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(OSError, match=r"No space left on device: 'a\.pt'"):
        save_checkpoint(Path("a.pt"), CARD, {"w": torch.zeros(2)})
    assert not list(Path().glob("*.pt"))
