"""``--help`` of every command: read from its source without running it, and yet what the command really does."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from common.command.config import RENAMED, parse_flags
from common.command.help import ROOT, answer, page_of
from common.command.seg import commands
from common.losses import ONE_LOGIT, SEVERAL_LOGITS

SHARED = {"export": "common.inference.export", "tune": "common.training.tune"}
"""Commands whose flags are the same in all tasks, and where those are."""
COMMANDS = [(task, name) for task, names in commands().items() for name in names]


def source(task, name):
    return ROOT / f"{SHARED.get(name, f'{task}.{name}').replace('.', '/')}.py"


def flags(task, name):
    return {one.name: one for group in page_of(source(task, name), "Config").groups.values() for one in group}


@pytest.mark.parametrize(("task", "name"), COMMANDS, ids=["/".join(each) for each in COMMANDS])
def test_the_page_has_the_commands_flags_and_defaults(task, name):
    config = importlib.import_module(SHARED.get(name, f"{task}.{name}")).Config
    shown = flags(task, name)
    assert shown.keys() == {field.name for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        expected = ... if field.default is dataclasses.MISSING else field.default
        default = shown[field.name].default
        if isinstance(expected, (list, tuple)):
            expected, default = list(expected), list(default)
        assert default == (str(expected) if isinstance(expected, Path) else expected), field.name
        assert shown[field.name].text, f"--{field.name} is not explained"


@pytest.mark.parametrize(("task", "name"), COMMANDS, ids=["/".join(each) for each in COMMANDS])
def test_every_page_has_groups_and_an_example_that_parses(task, name):
    page = page_of(source(task, name), "Config")
    config = importlib.import_module(SHARED.get(name, f"{task}.{name}")).Config
    if len(flags(task, name)) > 12:
        assert len(page.groups) > 2 and "Flags" not in page.groups
    examples = page.text.partition("Examples:")[2].split("\n")
    words = [line.split()[2:] for line in examples if line.strip()]
    assert words
    for given in words:
        assert parse_flags(config, given)


@pytest.mark.parametrize("name", ["make_aerial", "make_nuclei"])
def test_the_makers_of_weights_have_a_page_too(name):
    config = importlib.import_module(f"weights.{name}").Config
    page = page_of(ROOT / "weights" / f"{name}.py", "Config")
    shown = {one.name: one for group in page.groups.values() for one in group}
    assert shown.keys() == {field.name for field in dataclasses.fields(config)}
    assert shown["out"].default == config.out.name and shown["lr"].default == config.lr


def test_help_imports_nothing_heavy_and_shows_the_recipes_defaults(tmp_path):
    (tmp_path / "own.yaml").write_text("lr: 0.125\n")
    script = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print('code', stop.code, sorted({'torch', 'rasterio', 'numpy'} & set(sys.modules)))\n"
    )
    words = [
        sys.executable,
        "-c",
        script,
        str(ROOT / "rooftops/train.py"),
        "--config",
        str(tmp_path / "own.yaml"),
        "-h",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == "" and done.stdout.endswith("code 0 []\n")
    assert "usage: python rooftops/train.py [flags]" in done.stdout
    assert f"Defaults shown are those of {tmp_path / 'own.yaml'} and rooftops/source.yaml." in done.stdout.replace(
        "\n", " "
    )
    assert "(default: 0.125)" in done.stdout and "(default: 50)" in done.stdout
    assert done.stdout.index("\nData:") < done.stdout.index("--split-by") < done.stdout.index("\nNetwork:")


def test_losses_are_listed():
    for task, names in {
        "footprints": ONE_LOGIT,
        "hela_nuclei": ONE_LOGIT,
        "potsdam_points": SEVERAL_LOGITS,
        "rooftops": SEVERAL_LOGITS[:-1],
        "permeability": SEVERAL_LOGITS[:-1],
    }.items():
        text = flags(task, "train")["loss"].text
        assert all(name in text for name in names), task


def test_one_name_means_one_thing_in_all_tasks():
    takes = {}
    for task, name in COMMANDS:
        for flag in flags(task, name).values():
            takes.setdefault(flag.name, {})[task, name] = flag.value
    assert set(takes["rotate"].values()) == {"FLOAT"} and set(takes["crop_size"].values()) == {"INT"}
    assert {flags(task, "infer")["overlap"].default for task in commands()} == {None}
    assert not {name for old in RENAMED for name in takes if old == f"--{name.replace('_', '-')}"}


@pytest.mark.parametrize("old", ["--image-size", "--image_size=96", "--no-rotate"])
def test_old_names_end_with_the_new_one(old):
    config = importlib.import_module("rooftops.train").Config
    with pytest.raises(ValueError, match=r"^--(image-size|no-rotate) is called --(crop-size|rotate 0) now$"):
        parse_flags(config, [old, "3"])


@pytest.mark.parametrize("said", [f"{ROOT}/rooftops/infer.py", "seg rooftops infer"])
def test_usage_says_how_the_command_was_called(said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [said, "--help"])
    assert answer(source("rooftops", "infer")) == 0
    expected = "python rooftops/infer.py" if said.startswith("/") else said
    assert capsys.readouterr().out.startswith(f"usage: {expected} [INPUT ...] [flags]\n")
