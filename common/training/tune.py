"""The search behind every task's ``tune.py``: trainings with settings that an engine proposes, the best one kept.

Every trial is a training with its own settings, judged by the validation mIoU of the network it keeps. The search may
be stopped or killed at any moment; the same command goes on with it, a trial that was cut short from its beginning.
Without data the demo scenes are used. The best trial's network is ``best.pt``, its settings are ``best.yaml``, which
``train.py --config`` takes.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from common.command.cli import STARTED, NonFiniteLoss, is_out_of_memory, say
from common.command.config import TrainConfig, parse_config, parse_flags, read_yaml
from common.command.progress import Work
from common.command.recipes import read_recipe
from common.files import atomic_path, write_text
from common.networks.checkpoint import RUNS
from common.networks.precision import choose_precision
from common.networks.task import Task
from common.report.plots import best_epoch
from common.training.budget import FINISH_SECONDS
from common.training.experiment import Experiment
from common.training.loop import fit, seed_everything
from common.training.runs import RunFolder, own_folder, remove_run
from common.training.search import Choice, Proposal, Space, Storage, Trial, propose, ranked, read_space

OWN_FLAGS = ("data_root", "images", "labels", "seed", "workers", "device", "amp")
"""What this command sets for all trials."""


@dataclass(frozen=True)
class Config:
    """Search for the best network and recipe; writes best.pt, best.yaml for train.py --config, and a ranked table.

    Examples:
        python rooftops/tune.py --engine optuna --trials 20 --storage trials.json --data-root DIR
    """

    # Search
    engine: Literal["hyperopt", "optuna"]
    """Who proposes the trials; optuna also ends hopeless ones early."""
    trials: int
    """Trials in the end, those of earlier runs with this storage included."""
    storage: Path
    """File that keeps the trials; the same file goes on with the search."""
    space: Path | None = None
    """What to search: a list is a choice, {low, high, log} a range, anything else fixed (default: space.yaml, or
    space_demo.yaml without data if the task has one)."""
    config: Path | None = None
    """YAML file with settings below the space; it stands on the recipe (source.yaml, or demo.yaml without data)."""
    # Data
    data_root: Path | None = None
    """Folder with the data. Without any data flag the built-in demo scenes are used."""
    images: Path | None = None
    """Folder of orthophotos, in place of --data-root; needs --labels."""
    labels: Path | None = None
    """Folder of masks."""
    # Search
    minutes_per_trial: float = 0.0
    """Time budget of one training (0 = all its epochs)."""
    output_dir: Path | None = None
    """Where trials, best.pt and the table go; default runs/<task>/tune-<name of the storage>."""
    seed: int = 0
    """Seed of the proposals and of every training."""
    # Machine
    workers: int | Literal["auto"] = "auto"
    """Processes that load data."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    amp: str = "auto"
    """Mixed precision: auto, off, bf16 or fp16."""
    # Data
    skip_bad: bool = False
    """Go on without files that are damaged or do not fit."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if self.trials < 1 or self.minutes_per_trial < 0:
            raise ValueError("--trials must be at least 1, and --minutes-per-trial must not be negative")
        if (self.images is None) != (self.labels is None):
            raise ValueError("--images and --labels belong together; one of them is missing")

    @property
    def has_data(self) -> bool:
        """Whether the user named data."""
        return self.data_root is not None or self.images is not None


class Trainable(Protocol):
    """A task's module ``train``."""

    DEMO: Path
    """Where the demo scenes lie."""

    @property
    def __file__(self) -> str | None:
        """Beside recipes and spaces."""

    @property
    def Config(self) -> type[TrainConfig]:
        """The training's flags."""

    def load_data(self, config: Any, /) -> Any:  # noqa: ANN401
        """Open, check and split the data of a configuration."""

    def build(self, config: Any, data: Any, /) -> Experiment:  # noqa: ANN401
        """Make network and samples."""


@dataclass(frozen=True)
class Search:
    """A search of a task, with the recipe below its trials."""

    config: Config
    task: Task
    train: Trainable
    check: Callable[[Any], object]
    recipe: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.config.output_dir or RUNS / self.task.name / f"tune-{self.config.storage.stem}"


class Pruned(Exception):
    """A trial is not worth going on with."""


class TrialRun(RunFolder):
    """A run folder that tells the engine each epoch's score.

    Args:
        path: the folder.
        is_hopeless: told (epoch, mIoU), says whether to end the trial.
        epochs: those of a whole training; its last one is never pruned.
    """

    def __init__(self, path: Path, is_hopeless: Callable[[int, float], bool], epochs: int) -> None:
        super().__init__(path)
        self._is_hopeless, self._epochs = is_hopeless, epochs
        self.course: list[float] = []
        self.value: float | None = None
        """The mIoU of the network that is kept."""

    def log_epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the history, and end the trial if it is hopeless."""
        super().log_epoch(history)
        self.course = [float(row["miou"]) for row in history]
        self.value = self.course[best_epoch(history) or 0]
        if self._is_hopeless(len(history), self.course[-1]) and len(history) < self._epochs:
            raise Pruned


def tune(task: Task, train: Trainable, check: Callable[[Any], object] = lambda config: None) -> int:
    """Search until there are as many trials as asked for, then print the table: the ``main`` of every ``tune.py``.

    Args:
        task: what is trained.
        train: how.
        check: raises a ValueError for settings, each of which is fine, that make no network.

    Returns:
        The exit code.
    """
    config, home = parse_flags(Config), Path(str(train.__file__)).resolve().parent
    if find_spec(config.engine) is None:
        raise ValueError(f"--engine {config.engine}: that library is not installed; pip install {config.engine}")
    space = read_space(config.space or own_space(home, demo=not config.has_data))
    own = read_yaml(config.config) if config.config else {}
    base, _ = read_recipe(home, str(own["recipe"]) if "recipe" in own else None, demo=not config.has_data)
    search = Search(config, task, train, check, {**base, **own, **space.fixed})
    check_space(space, search)
    settings = {
        "space": {name: str(kind) for name, kind in space.searched.items()},
        "recipe": search.recipe,
        "data": str((config.data_root or config.images or train.DEMO).resolve()),
        "minutes per trial": config.minutes_per_trial,
    }
    storage = Storage(config.storage, settings)
    own_folder(search.folder, f"the search of {config.storage.resolve()}")
    with storage.locked():
        storage = Storage(config.storage, settings)  # as it is now that nobody else writes it
        run_trials(search, space, storage)
    write_table(storage.trials, search.folder)
    print((search.folder / "trials.md").read_text(encoding="utf-8"), flush=True)
    best = storage.best()
    if not storage.trials:
        raise ValueError("the space holds no network that exists; not every architecture takes every encoder")
    if best is None:
        raise ValueError(f"none of the {len(storage.trials)} trials succeeded; such as: {storage.trials[0].note}")
    write_recipe(search, best)
    again = f"train.py --config {search.folder / 'best.yaml'} trains with its settings"
    say(f"best: trial {best.number}, mIoU {best.value:.4f}, {search.folder / 'best.pt'}; {again}")
    return 0


def own_space(home: Path, *, demo: bool) -> Path:
    """The space that a task brings: the demo's, if there is one and the demo is trained, else the one for data."""
    small = home / "space_demo.yaml"
    return small if demo and small.is_file() else home / "space.yaml"


def check_space(space: Space, search: Search) -> None:
    """Try every value of the space alone, so that a mistake is found before the first trial.

    Raises:
        ValueError: a key or a value means nothing to the training, or a key is this command's to set.
    """
    if own := sorted({*OWN_FLAGS, "output_dir"} & {*space.searched, *space.fixed}):
        raise ValueError(f"the space holds {', '.join(own)}, which every trial shares; give it as a flag of tune.py")
    for name, kind in space.searched.items():
        values = kind.values if isinstance(kind, Choice) else (kind.number(kind.low), kind.number(kind.high))
        for value in values:
            train_config(search, {name: value}, search.folder)


def train_config(search: Search, params: Mapping[str, Any], folder: Path) -> TrainConfig:
    """A trial's training: the recipe, the trial's parameters above it, and this command's flags."""
    config = search.config
    values = {**search.recipe, **{name: str(value) for name, value in params.items()}}
    flags = [f"--output-dir={folder}"]
    for name in OWN_FLAGS:
        if (value := getattr(config, name)) is not None:
            flags.append(f"--{name.replace('_', '-')}={value}")
    if config.minutes_per_trial:  # the training counts from the start of the process, and saves time for a report
        minutes = (time.monotonic() - STARTED + FINISH_SECONDS) / 60 + config.minutes_per_trial
        flags.append(f"--max-minutes={minutes:.3f}")
    if config.skip_bad:
        flags.append("--skip-bad")
    return parse_config(search.train.Config, flags, values, "the space")


def write_recipe(search: Search, best: Trial) -> None:
    """Write the best trial's settings as a recipe that ``train.py --config`` takes."""
    values = {"recipe": "none", **search.recipe, **{name: str(value) for name, value in best.params.items()}}
    plain = {name: plain_value(value) for name, value in values.items()}
    head = f"# The best of {search.config.storage}: trial {best.number}, validation mIoU {best.value:.4f}.\n"
    write_text(search.folder / "best.yaml", head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def plain_value(text: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """A number instead of its text where that says the same, so that no quotes are needed."""
    if isinstance(text, list):
        return [plain_value(item) for item in text]
    value = yaml.safe_load(text) if isinstance(text, str) else text
    return value if type(value) in (int, float) and str(value) == text else text


def run_trials(search: Search, space: Space, storage: Storage) -> None:
    """Run trials until there are enough of them."""
    config = search.config
    if len(storage.trials) >= config.trials:
        say(f"{config.storage} holds {len(storage.trials)} trials already")
        return
    if storage.trials:
        say(f"going on after {len(storage.trials)} trials of {config.storage}")
    with Work("reading and checking the data"):
        data = search.train.load_data(train_config(search, {}, search.folder))
    with Work("trials", config.trials, "trial") as work:
        work.advance(len(storage.trials))
        while len(storage.trials) < config.trials:
            proposals = propose(config.engine, space, storage.trials, config.seed)
            proposal = next((one for one in proposals if is_possible(search, one)), None)
            if proposal is None:
                say(f"the space has no further trials: all {len(storage.trials)} that were found have been tried")
                return
            run_trial(search, storage, proposal, data)
            write_table(storage.trials, search.folder)
            work.advance()


def is_possible(search: Search, proposal: Proposal) -> bool:
    """Whether the settings of a proposal go together: not every architecture takes every encoder."""
    try:
        search.check(train_config(search, proposal.params, search.folder))
    except ValueError:
        return False
    return True


def run_trial(search: Search, storage: Storage, proposal: Proposal, data: object) -> None:
    """Train once and note how it ended; the best network so far is kept as best.pt."""
    config, number = search.config, len(storage.trials)
    folder = search.folder / f"trial_{number:03d}"
    remove_run(folder)  # cut short: it starts from its beginning
    wanted = train_config(search, proposal.params, folder)
    listed = ", ".join(f"{name} {value}" for name, value in proposal.params.items())
    say(f"trial {number} of {config.trials}: {listed}")
    run = TrialRun(folder, proposal.is_hopeless, wanted.epochs)
    trial = Trial(number, config.engine, proposal.params, "complete")
    started = time.monotonic()
    try:
        seed_everything(wanted.seed)
        fit(search.train.build(wanted, data), wanted, run, choose_precision(config.device, config.amp))
    except Pruned:
        trial.state = "pruned"
    except Exception as error:
        if not (isinstance(error, (ValueError, NonFiniteLoss)) or is_out_of_memory(error)):
            raise
        trial.state, trial.note = "failed", " ".join(str(error).split())[:300]
    trial.seconds, trial.course = round(time.monotonic() - started, 1), run.course
    if trial.state != "failed":
        trial.value = run.value
    best = storage.best()
    if trial.value is not None and (best is None or ranked([best, trial])[0] is trial):
        with atomic_path(search.folder / "best.pt") as temporary:
            shutil.copyfile(folder / "best_iou.pt", temporary)
    log_hparams(search.folder, trial)
    storage.add(trial)
    for name in ("best_iou.pt", "best_loss.pt", "last.pt"):
        (folder / name).unlink(missing_ok=True)
    score = "-" if trial.value is None else f"{trial.value:.4f}"
    say(f"trial {number}: {trial.state}, mIoU {score}, {trial.seconds:.0f} s {trial.note}")


def log_hparams(folder: Path, trial: Trial) -> None:
    """Write a trial's parameters and score where TensorBoard's HParams page finds them."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "hparams")) as writer:
        writer.add_hparams(
            {**trial.params, "state": trial.state},
            {"hparam/miou": trial.value or 0.0, "hparam/seconds": trial.seconds},
            run_name=f"trial_{trial.number:03d}",
        )


def write_table(trials: Sequence[Trial], folder: Path) -> None:
    """Write trials.csv and trials.md, best first."""
    names = list(trials[0].params) if trials else []
    header = ["rank", "trial", "engine", "state", "miou", "epochs", "seconds", *names]
    rows = [
        [rank, trial.number, trial.engine, trial.state, "-" if trial.value is None else f"{trial.value:.4f}",
         len(trial.course), trial.seconds, *(trial.params[name] for name in names)]
        for rank, trial in enumerate(ranked(trials), start=1)
    ]  # fmt: skip
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(folder / "trials.csv", text.getvalue())
    lines: list[list[Any]] = [header, ["---"] * len(header), *rows]
    write_text(folder / "trials.md", "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n")
