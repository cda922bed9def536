"""Flags over YAML over defaults, and messages that name what is wrong."""

import dataclasses
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from common.command.cli import exit_code
from common.command.config import (
    TrainConfig,
    config_values,
    flag_value,
    parse_config,
    parse_flags,
    read_yaml,
    save_config,
)


@dataclass(frozen=True)
class Config(TrainConfig):
    """A task's flags."""

    widths: tuple[int, ...] = (16, 32)
    """Several numbers."""
    note: str = "off"
    """Text that YAML would read as something else."""
    scale: float | None = None
    """A number or nothing."""
    mode: Literal["a", "b"] = "a"
    """One of two."""


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def parse(path, *flags, base=None):
    return parse_config(Config, ["--config", str(path), *flags], base)


def test_yaml_scalars_are_what_their_field_says(yaml_file):
    config = parse(
        yaml_file(
            "lr: 1e-4\namp: off\naugment: off\nskip_bad: yes\ncompile: on\nepochs: 7\nwidths: [8, 16, 24]\nscale: 0.5\n"
        )
    )
    assert config.lr == 1e-4 and isinstance(config.lr, float)
    assert config.amp == "off" and config.augment is False and config.skip_bad is True and config.compile == "on"
    assert config.epochs == 7 and config.widths == (8, 16, 24) and config.scale == 0.5


@pytest.mark.parametrize("word", ["null", "~", ""])
def test_nothing_is_none_where_a_field_allows_it(yaml_file, word):
    assert parse(yaml_file(f"scale: {word}\ndata_root: {word}\n")).scale is None


@pytest.mark.parametrize(("word", "value"), [("true", True), ("False", False), ("on", True), ("no", False)])
def test_booleans(yaml_file, word, value):
    assert parse(yaml_file(f"augment: {word}\n")).augment is value


def test_the_command_line_wins_over_yaml_over_base_over_the_dataclass(yaml_file):
    path = yaml_file("lr: 2\nbatch_size: 3\naugment: false\nwidths: [1, 2, 3]\n")
    config = parse(path, "--lr", "5", "--augment", "--widths", "9", base={"lr": "7", "batch_size": "8", "seed": "4"})
    assert (config.lr, config.batch_size, config.seed, config.epochs) == (5.0, 3, 4, 30)
    assert config.augment is True and config.widths == (9,)
    assert config.config == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 4", ["batchsize", "'batch_size'"]),
        ("learning_rate: 4", ["learning_rate", "nearest known"]),
        ("batch-size: 4", ["batch-size", "'batch_size'"]),
        ("config: other.yaml", ["unknown key 'config'"]),
        ("epochs: many", ["epochs", "'many'", "int"]),
        ("epochs: 1.5", ["epochs", "'1.5'"]),
        ("scheduler: linear", ["scheduler", "'linear'", "cosine"]),
        ("augment: maybe", ["augment", "'maybe'", "true or false"]),
        ("lr: [1, 2]", ["lr", "['1', '2']", "one value"]),
        ("widths: [1, x]", ["widths", "['1', 'x']"]),
        ("lr: {a: 1}", ["lr", "dict"]),
        ("epochs:", ["epochs", "''"]),
        ("- 1\n- 2", ["holds a list"]),
        ("epochs: [7]", ["epochs", "one value"]),
        ("note: --skip-bad", ["note", "'--skip-bad' is a flag"]),
        ("widths: [8, --epochs, 99]", ["widths", "'--epochs' is a flag"]),
        ("lr: .nan", ["lr", "'.nan'"]),
        ("lr: nan", ["--lr nan", "finite"]),
        ("a: [1", ["not valid YAML"]),
    ],
)
def test_a_mistake_in_yaml_names_file_key_and_value(yaml_file, text, words, capsys):
    path = yaml_file("seed: 1\n" + text if ":" in text else text)
    assert exit_code(lambda: bool(parse(path))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in [str(path), *words]:
        assert word in err


def test_a_mistake_in_the_base_names_the_base():
    with pytest.raises(ValueError, match=r"runs/1/config\.yaml: epochs: 'x' does not fit"):
        parse_config(Config, [], {"epochs": "x"}, "runs/1/config.yaml")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "x"], "--epochs"),
        (["--bogus", "1"], "--bogus"),
        (["--epochs"], "--epochs"),
        (["--amp", "int8"], "--amp"),
        (["--config"], "--config"),
    ],
)
@pytest.mark.parametrize("with_yaml", [False, True])
def test_a_mistake_in_the_flags_is_one_line_and_exit_2(flags, words, with_yaml, yaml_file, capsys):
    before = ["--config", str(yaml_file("epochs: 3\n"))] if with_yaml else []
    assert exit_code(lambda: bool(parse_config(Config, before + flags))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and "recipe.yaml" not in err


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config .*nowhere\.yaml does not exist"):
        parse(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            data_root=Path("a b/ü"), lr=1e-5, lr_min=1e-7, amp="off", augment=False, compile="on", widths=(4,),
            scale=0.1, mode="b", early_stopping=3, max_minutes=2.5, ema=0.999,
        ),
        Config(images=Path("i"), labels=Path("l"), val_fraction=0.0, test_fraction=0.95, note="1e5", widths=(1, 2, 3)),
        Config(note=""),
        Config(note="yes"),
        Config(note="null", loss="0.3*ce+0.7*dice"),
        Config(note="# not: a comment"),
    ],
)  # fmt: skip
def test_a_saved_configuration_reads_back_identically(tmp_path, config):
    save_config(tmp_path / "config.yaml", config)
    again = parse(tmp_path / "config.yaml")
    assert dataclasses.replace(again, config=None) == config
    assert config_values(again) == config_values(config)
    assert "config" not in read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "a"], "--images and --labels"),
        (["--epochs", "0"], "--epochs 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr-step", "0"], "--lr-step 0"),
        (["--warmup-steps", "-1"], "--warmup-steps -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--ema", "1"], "--ema 1"),
        (["--val-fraction", "0.6", "--test-fraction", "0.4"], "--val-fraction 0.6 and --test-fraction 0.4"),
        (["--val-fraction", "-0.1"], "--val-fraction -0.1"),
        (["--max-minutes", "-1"], "--max-minutes -1"),
        (["--max-minutes", "nan"], "--max-minutes nan must be a finite number"),
        (["--weight-decay", "inf"], "--weight-decay inf must be a finite number"),
        (["--scale", "nan"], "--scale nan must be a finite number"),
        (["--widths", "8", "-3"], "--widths -3 must not be negative"),
        (["--early-stopping", "9999999999"], "--early-stopping 9999999999 must not be larger"),
    ],
)
def test_checks_across_fields(flags, words, capsys):
    assert exit_code(lambda: bool(parse_config(Config, flags))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


def test_only_the_result_must_fit_together(yaml_file):
    config = parse(yaml_file("images: a\ntest_fraction: 0.95\n"), "--labels", "b", base={"val_fraction": "0.01"})
    assert (config.images, config.labels, config.test_fraction) == (Path("a"), Path("b"), 0.95)
    assert parse_config(Config, ["--val-fraction", "0.1"], {"val_fraction": "5"}).val_fraction == 0.1


def test_flags_read_before_parsing():
    argv = ["--output_dir", "a", "--config=x.yaml", "--output-dir", "b", "--resume"]
    assert [flag_value(argv, name) for name in ("output_dir", "config", "resume", "images")] == [
        "b",
        "x.yaml",
        None,
        None,
    ]


def test_help_is_no_error():
    with pytest.raises(SystemExit) as stop:
        parse_flags(Config, ["--help"])
    assert stop.value.code == 0


def test_a_command_shows_no_traceback(yaml_file):
    script = (
        "from common.command.cli import run_command; from common.command.config import TrainConfig, parse_config; "
        "run_command(lambda: bool(parse_config(TrainConfig)))"
    )
    path = yaml_file("epoch: 3\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", script, "--config", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {path}: unknown key 'epoch'; the nearest known one is 'epochs'\n"


def test_numbers_of_any_command_are_checked_and_some_may_be_negative():
    @dataclass(frozen=True)
    class Infer:
        """Flags of a command without YAML."""

        input_range: tuple[float, float] | None = None
        """Black and white."""
        tile_size: int = 0
        """Pixels."""

    assert parse_flags(Infer, ["--input-range", "-3", "5"]).input_range == (-3.0, 5.0)
    for flags in (["--input-range", "nan", "5"], ["--tile-size", "-1"]):
        with pytest.raises(ValueError, match=flags[0]):
            parse_flags(Infer, flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "x"], "--epochs needs a whole number, not 'x'"),
        (["--lr", "x"], "--lr needs a number, not 'x'"),
        (["--epoch", "3"], "no such flag or argument: --epoch, 3; perhaps you meant --epochs"),
        (["--epochs", "0"], "--epochs 0 must be greater than 0"),
        (["--amp", "int8"], "invalid choice 'int8' for argument '--amp'"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_complaint_says_a_thing_once_and_plainly(flags, said, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))  # which decides how boxes are drawn
    with pytest.raises(ValueError, match="--help lists them") as info:
        parse_flags(Config, flags)
    assert str(info.value).startswith(said)
