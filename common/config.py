"""Training configurations: frozen dataclasses whose fields are command-line flags and YAML keys.

``--config FILE.yaml`` sets defaults and the command line wins. YAML scalars are read as text and parsed by the field's own type, exactly like a
flag, so ``lr: 1e-4`` is a number and ``amp: off`` the word (YAML's own typing reads a string and a boolean there).
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from common.checkpoint import write_text
from common.cli import one_line_usage_errors

C = TypeVar("C")


@dataclass(frozen=True)
class TrainConfig:
    """Flags that every task's training understands."""

    data_root: Path | None = None
    """Folder with the data in the task's layout. Without any data flag the built-in demo is trained."""
    images: Path | None = None
    """Folder of images, in place of the task's layout; needs --labels."""
    labels: Path | None = None
    """Folder of labels, joined to --images by stem (a suffix _label is allowed)."""
    val_fraction: float = 0.1
    """Share of the data for validation, where the folders do not name the split."""
    test_fraction: float = 0.1
    """Share of the data for the final test, where the folders do not name the split."""
    epochs: int = 30
    """Passes over the training set (an upper bound with --max-minutes)."""
    batch_size: int = 4
    """Samples per optimization step (before --grad-accum)."""
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
    loss: str = "ce"
    """Weighted sum of losses by name, such as ce+dice or 0.3*ce+0.7*dice."""
    augment: bool = True
    """Random flips, rotations and intensity changes of training samples."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and saved (0 = off)."""
    early_stopping: int = 0
    """Stop after this many epochs without a better validation mIoU (0 = off)."""
    grad_accum: int = 1
    """Batches whose gradients are added up before one optimization step."""
    clip_norm: float = 0.0
    """Upper bound of the gradient norm (0 = off)."""
    workers: int = 0
    """Processes that load data (0 = the training process itself)."""
    seed: int = 0
    """Seed of the split, the weights, the order and the augmentation."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto = bf16 where the hardware has it, fp16 on older CUDA devices, else off."""
    compile: bool = False
    """Compile the network with torch.compile."""
    weights: str = "none"
    """Initial weights: none, imagenet (downloads torchvision's), or the path of a checkpoint."""
    resume: str | None = None
    """auto (last.pt in --output-dir, else of the newest run) or the path of a last.pt."""
    output_dir: Path | None = None
    """Run folder; default runs/<task>/<timestamp>."""
    max_minutes: float = 0.0
    """Time budget from start to exit, report included (0 = none); the schedule is planned for it."""
    skip_bad: bool = False
    """Go on without files that are damaged or do not fit, instead of stopping."""
    config: Path | None = None
    """YAML file with defaults for these flags."""

    def __post_init__(self) -> None:
        """Check what one field cannot check alone."""
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "grad_accum": self.grad_accum}
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be greater than 0")
        if not 0 <= self.val_fraction < 1 or not 0 <= self.test_fraction < 1 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave nothing to train on")
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema {self.ema} must be at least 0 and below 1")
        if (self.images is None) != (self.labels is None):
            raise ValueError("--images and --labels belong together; one of them is missing")
        if self.max_minutes < 0 or self.clip_norm < 0 or self.workers < 0:
            raise ValueError("--max-minutes, --clip-norm and --workers must not be negative")

    @property
    def has_data(self) -> bool:
        """Whether the user named data (else the demo is trained)."""
        return self.data_root is not None or self.images is not None


def parse_config(config_type: type[C], argv: Sequence[str] | None = None, base: Mapping[str, str | list[str]] | None = None, **tyro_options: Any) -> C:
    """Parse flags over YAML over the dataclass' own defaults.

    Args:
        config_type: a dataclass with a ``config: Path | None`` field.
        argv: the flags; default ``sys.argv[1:]``.
        base: values by field name that rank below ``--config`` (the demo's, or those of the run that is resumed).
        tyro_options: passed to ``tyro.cli`` (``description`` and the like).

    Raises:
        ValueError: a YAML key is unknown or a value does not fit its field; the text names file, key and value.
        FileNotFoundError: the YAML file does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    defaults = _construct(config_type, base, "defaults") if base else None
    path = _config_flag(argv)
    if path is not None:
        values = {**(base or {}), **read_yaml(path)}
        defaults = _construct(config_type, values, str(path))
    with one_line_usage_errors():
        return tyro.cli(config_type, args=argv, default=defaults, **tyro_options)


def parse_flags(config_type: type[C], argv: Sequence[str] | None = None) -> C:
    """Parse flags alone, for commands without YAML files.

    Raises:
        ValueError: the flags do not parse, in one line.
    """
    with one_line_usage_errors():
        return tyro.cli(config_type, args=list(sys.argv[1:] if argv is None else argv))


def read_yaml(path: Path) -> dict[str, str | list[str]]:
    """Read a flat YAML mapping with every scalar as text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a YAML mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; write one 'key: value' line per flag")
    return {str(key): value for key, value in values.items()}


def save_config(path: Path, config: Any) -> None:
    """Write the resolved configuration as YAML that ``--config`` reads back."""
    write_text(path, yaml.safe_dump(config_values(config), sort_keys=False, allow_unicode=True))


def config_values(config: Any) -> dict[str, Any]:
    """The fields of a configuration as plain values (paths as text)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.name != "config"}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _config_flag(argv: Sequence[str]) -> Path | None:
    path = None
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            path = argv[i + 1]
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
    return Path(path) if path else None


def _construct(config_type: type[C], values: Mapping[str, str | list[str]], source: str) -> C:
    names = [f.name for f in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.0)
            raise ValueError(f"{source}: unknown key '{key}'; the nearest known one is '{near[0]}'")
    booleans = {f.name for f in dataclasses.fields(config_type) if f.type in ("bool", bool)}  # type: ignore[arg-type]
    flags = {key: _flag_words(key, value, key in booleans) for key, value in values.items()}
    for key, words in flags.items():  # one by one first, so that a wrong value is named by its key
        try:
            parse_flags(config_type, words)
        except ValueError as error:
            kind = next(f.type for f in dataclasses.fields(config_type) if f.name == key)  # type: ignore[arg-type]
            raise ValueError(f"{source}: {key}: {values[key]!r} does not fit, expected {kind}") from error
    try:
        return parse_flags(config_type, [word for words in flags.values() for word in words])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _flag_words(key: str, value: str | list[str], is_bool: bool) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if is_bool and value.lower() in ("true", "yes", "on"):
        return [f"--{name}"]
    if is_bool and value.lower() in ("false", "no", "off"):
        return [f"--no-{name}"]
    return [f"--{name}", "None" if value in ("null", "~", "") else value]
