"""Training configurations: frozen dataclasses whose fields are command-line flags and YAML keys.

``--config FILE.yaml`` sets defaults and the command line wins. YAML scalars are read as text and become flags in front
of those given, so ``lr: 1e-4`` is a number and ``amp: off`` the word (YAML's own typing reads a string and a boolean
there), and what fields must fulfil together is checked once, on the result.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from common.command.cli import one_line_usage_errors
from common.command.help import HELP, answer_from
from common.command.yaml_file import load_yaml
from common.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
Device = Literal["auto", "cpu", "cuda", "mps"]
Amp = Literal["auto", "off", "bf16", "fp16"]
RENAMED = {"--image-size": "--crop-size", "--no-rotate": "--rotate 0"}
"""Flags of earlier versions, and what they are called."""
POSITIVE = ("epochs", "batch_size", "lr", "grad_accum", "lr_factor", "lr_step")
SIGNED = ("input_range",)
"""Flags that may be below 0."""
LARGEST = 2**31 - 1
"""Whole numbers above this are mistakes: no size, count or seed needs them."""
MOST = {
    **dict.fromkeys(("balance", "blur", "color", "confidence", "cutmix", "dropout", "generated", "label_smoothing"), 1),
    **{"rotate": 180, "zoom": 2},
    **dict.fromkeys(("crop_size", "size", "tile_size", "widths"), 8192),
    "workers": 1024,
}
"""Largest values of flags: shares, degrees, and what could only run out of memory or processes beyond."""
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
FORMER_WORDS = {"true": "on", "false": "off"}
"""What switches that became words were called: `compile: false` of older runs is `compile: off`."""
NOTHING = (None, "", "null", "~", "None")
"""How a YAML file says that a field has no value."""
ELSEWHERE = ("resume", "output_dir", "config")
"""Fields that say where a run goes and comes from: of no use to another run, so not saved."""
Values = Mapping[str, str | list[str]]
"""What a YAML file says, by field name, as text."""


@dataclass(frozen=True)
class TrainConfig:
    """Flags that every task's training understands."""

    # Data
    data_root: Path | None = None
    """Folder with the data in the task's layout. Without any data flag the built-in demo is trained."""
    images: Path | None = None
    """Folder of images, in place of the task's layout; needs --labels."""
    labels: Path | None = None
    """Folder of labels, joined to --images by stem (a suffix _label is allowed)."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: the number type's, 0-255, 0-65535, and 0-1 for floats."""
    val_fraction: float = 0.1
    """Share of the data for validation, where the folders do not name the split."""
    test_fraction: float = 0.1
    """Share of the data for the final test, where the folders do not name the split."""
    skip_bad: bool = False
    """Go on without files that are damaged or do not fit, instead of stopping."""
    skip_suspects: Path | None = None
    """Leave out the images of this list: the suspects.csv of an earlier training, after you have looked at it."""
    # Network
    weights: str = "none"
    """Initial weights: none, imagenet (downloads torchvision's), shipped, or the path of a checkpoint."""
    # Samples
    augment: bool = True
    """Random flips, rotations and intensity changes of training samples."""
    # Training
    epochs: int = 30
    """Passes over the training set (an upper bound with --max-minutes)."""
    max_minutes: float = 0.0
    """Time budget from start to exit, report included (0 = none); the schedule is planned for it."""
    batch_size: int = 4
    """Samples per optimization step (before --grad-accum)."""
    grad_accum: int = 1
    """Batches whose gradients are added up before one optimization step."""
    loss: str = "ce"
    """Weighted sum of ce, edge_ce (borders count more), focal, dice, jaccard, such as ce+dice or 0.3*ce+0.7*dice."""
    threshold: float | None = None
    """Two classes: foreground where P is at least this, in validation and in the checkpoint; default: the validation
    part's best of every epoch."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW weight decay (0 = plain Adam)."""
    scheduler: Literal["constant", "plateau", "step", "poly", "cosine"] = "constant"
    """Learning rate over the run; plateau watches the validation loss."""
    warmup_steps: int = 0
    """Optimization steps over which the learning rate rises linearly."""
    lr_factor: float = 0.5
    """Factor of the plateau and step schedules."""
    lr_patience: int = 5
    """Plateau: epochs without a better validation loss before the rate falls."""
    lr_step: int = 30
    """Step: epochs between two falls of the rate."""
    lr_min: float = 0.0
    """The rate never falls below this."""
    clip_norm: float = 0.0
    """Upper bound of the gradient norm (0 = off)."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and saved (0 = off)."""
    one_standard_error: bool = False
    """best_iou.pt is the latest epoch whose validation mIoU the images cannot tell from the best, not the best one."""
    early_stopping: int = 0
    """Stop after this many epochs without a better validation mIoU (0 = off)."""
    seed: int = 0
    """Seed of the split, the weights, the order and the augmentation."""
    # Machine
    device: Device = "auto"
    """Where to compute."""
    amp: Amp = "auto"
    """Mixed precision; auto = bf16 where the hardware has it, fp16 on older CUDA devices, else off."""
    compile: Literal["auto", "on", "off"] = "off"
    """Compile the network with torch.compile; auto = in trainings so long that it pays."""
    workers: int | Literal["auto"] = "auto"
    """Processes that load data (0 = the training process itself); auto = as many as keep the network busy."""
    # Run
    config: Path | None = None
    """YAML file with values for these flags, in place of the recipe's."""
    recipe: str | None = None
    """What --config and the flags stand on: best, source or demo (the task's recipes), or none; default: source where
    data are named, else demo."""
    output_dir: Path | None = None
    """Run folder; default runs/<task>/<timestamp>."""
    resume: str | None = None
    """auto (last.pt in --output-dir, else of the newest run) or the path of a last.pt."""
    preview: bool = False
    """Only write preview.png into the run folder: samples and labels as the training would see them."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        check_prediction(self.threshold)
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag_name(name)} {getattr(self, name)} must be greater than 0")
        val, test = self.val_fraction, self.test_fraction
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise ValueError(f"--val-fraction {val} and --test-fraction {test} must leave something to train on")
        check_range(self.input_range)
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema {self.ema} must be at least 0 and below 1")
        check_pair(self.images, self.labels)

    @property
    def has_data(self) -> bool:
        """Whether the user named data (else the demo is trained)."""
        return self.data_root is not None or self.images is not None


def check_range(limits: tuple[float, float] | None) -> None:
    """Refuse an ``--input-range`` that is none.

    Raises:
        ValueError: it is not two finite numbers in rising order.
    """
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise ValueError(f"--input-range needs two numbers LO < HI, got {limits[0]:g} {limits[1]:g}")


def check_prediction(threshold: float | None, scale: float | None = None) -> None:
    """Refuse a ``--threshold`` or ``--scale`` that no network could use.

    Raises:
        ValueError: names the flag and its limits.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold} must lie in 0...1")
    if scale is not None and not 0.05 <= scale <= 20:
        raise ValueError(f"--scale {scale} must lie in 0.05...20")


def check_pair(images: Path | None, labels: Path | None) -> None:
    """Refuse one of ``--images`` and ``--labels`` without the other.

    Raises:
        ValueError: one is missing.
    """
    if (images is None) != (labels is None):
        raise ValueError("--images and --labels belong together; one of them is missing")


def parse_config(
    config_type: type[C], argv: Sequence[str] | None = None, base: Values | None = None, base_name: str = "defaults"
) -> C:
    """Parse flags over YAML over ``base`` over the dataclass' own defaults.

    Args:
        config_type: a dataclass with a ``config: Path | None`` field.
        argv: the flags; default ``sys.argv[1:]``.
        base: values that rank below ``--config`` (the demo's, or those of the run that is resumed).
        base_name: where ``base`` comes from, for messages.

    Raises:
        ValueError: a YAML key is unknown or a value does not fit its field; the text names file, key and value.
        FileNotFoundError: the YAML file does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    path = flag_value(argv, "config")
    layers = [(base_name, base or {}), (str(path), read_yaml(Path(path)) if path else {})]
    words = [word for name, values in layers for word in _flag_words(config_type, values, name)]
    if HELP & set(argv):
        answer_from(config_type, layers)
    try:
        return parse_flags(config_type, words + argv)
    except ValueError:
        for name, values in layers:
            _check_types(config_type, values, name)
        raise


def parse_flags(config_type: type[C], argv: Sequence[str] | None = None) -> C:
    """Parse flags alone, for commands without YAML files.

    Raises:
        ValueError: the flags do not parse, or hold a number that nothing could make right; in one line.
    """
    words = _one_checkpoint_a_flag(list(sys.argv[1:] if argv is None else argv))
    if HELP & set(words):
        answer_from(config_type)
    for word in words:
        _check_known(word.split("=")[0].replace("_", "-"))
    with one_line_usage_errors():
        parsed: C = tyro.cli(config_type, args=words)
    check_numbers(parsed)
    return parsed


def _check_known(flag: str) -> None:
    if flag in RENAMED:
        raise ValueError(f"{flag} is called {RENAMED[flag]} now")


def check_numbers(config: object) -> None:
    """Refuse numbers that are wrong in every flag: not finite, negative (but for `SIGNED`), or absurdly large.

    Raises:
        ValueError: names the flag and the value.
    """
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (int, float)):
                continue
            flag = f"{flag_name(field.name)} {number}"
            if not math.isfinite(number):
                raise ValueError(f"{flag} must be a finite number")
            if number < 0 and field.name not in SIGNED:
                raise ValueError(f"{flag} must not be negative")
            most = MOST.get(field.name, LARGEST if isinstance(number, int) else math.inf)
            if number > most:
                raise ValueError(f"{flag} must not be larger than {most}")


def _one_checkpoint_a_flag(argv: Sequence[str]) -> list[str]:
    """``--checkpoint A.pt B.pt IMAGE`` -> ``--checkpoint A.pt --checkpoint B.pt IMAGE``: inputs may follow the flag."""
    words: list[str] = []
    after = False
    for word in argv:
        if after and not word.startswith("-") and Path(word).suffix in CHECKPOINT_SUFFIXES:
            words += ["--checkpoint", word]
            continue
        after = words[-1:] == ["--checkpoint"]
        words.append(word)
    return words


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The last value that ``argv`` gives to the flag ``--name``, read before the flags are parsed."""
    value = None
    for i, word in enumerate(argv):
        flag, equals, attached = word.partition("=")
        if flag.replace("_", "-") == flag_name(name):
            value = attached if equals else next(iter(argv[i + 1 : i + 2]), value)
    return value


def read_yaml(path: Path) -> dict[str, str | list[str]]:
    """Read a flat YAML mapping with every scalar as text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a YAML mapping.
    """
    values = load_yaml("--config", path)
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} holds a {type(values).__name__}; write one 'key: value' line per flag")
    return values or {}


def save_config(path: Path, config: DataclassInstance) -> None:
    """Write the resolved configuration as YAML that ``--config`` reads back."""
    values = {name: value for name, value in config_values(config).items() if name not in ELSEWHERE}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def config_values(config: DataclassInstance) -> dict[str, Any]:
    """The fields of a configuration as plain values (paths as text)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.name != "config"}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def flag_name(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def _types(config_type: type[C]) -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(config_type, include_extras=True).items() if name != "config"}


def _flag_words(config_type: type[C], values: Values, source: str) -> list[str]:
    """The values of a YAML file as command-line words."""
    types = _types(config_type)
    words: list[str] = []
    for key, value in values.items():
        if key not in types:
            _check_known(flag_name(key))
            near = difflib.get_close_matches(key.replace("-", "_"), types, n=1, cutoff=0.0)
            raise ValueError(f"{source}: unknown key '{key}'; the nearest known one is '{near[0]}'")
        words += _words(key, value, types[key], source)
    return words


def _words(key: str, value: str | list[str], kind: Any, source: str) -> list[str]:  # noqa: ANN401
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{source}: {key}: a {type(value).__name__} does not fit; write 'key: value' lines alone")
    if flags := [item for item in items if item.startswith("--")]:
        raise ValueError(f"{source}: {key}: {flags[0]!r} is a flag, not a value")
    if isinstance(value, list):
        if tuple not in {get_origin(part) for part in (kind, *get_args(kind))}:
            raise ValueError(f"{source}: {key}: {value} is a list, one value is expected")
        return [flag_name(key), *value]
    if kind is bool:
        if value.lower() not in BOOLEANS:
            raise ValueError(f"{source}: {key}: {value!r} does not fit, expected true or false")
        return [flag_name(key) if BOOLEANS[value.lower()] else f"--no{flag_name(key)[1:]}"]
    if "on" in get_args(kind):
        value = FORMER_WORDS.get(value.lower(), value)
    if value in NOTHING and type(None) in get_args(kind):
        value = "None"
    return [flag_name(key), value]


def _check_types(config_type: type[C], values: Values, source: str) -> None:
    """Find the value of a YAML file that does not fit its field's type, if that was the mistake."""
    fields = {f.name: f for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    for key, kind in _types(config_type).items():
        if key in values:
            # With its default: a boolean without one is no flag.
            alone = dataclasses.make_dataclass("Alone", [(key, kind, dataclasses.field(default=fields[key].default))])
            try:
                parse_flags(alone, _words(key, values[key], kind, source))
            except ValueError as error:
                said = str(error)
                if "must" not in said:
                    said = f"{key}: {values[key]!r} does not fit, expected {fields[key].type}"
                raise ValueError(f"{source}: {said}") from error
