"""What training loses beside the network: samples a second of the sampler alone, of the network alone, and of both.

    python benchmarks/training_speed.py

For every task's ``best.yaml``, on its demo scenes (written under ``data/demo`` if they are not there): loading batches
and doing nothing with them, steps on one batch that is there, and training as ``train.py`` does it, in this process
(``--workers 0``) and with as many data workers as ``--workers auto`` takes in a run of the recipe's length. All are
taken in turn within a round; figures are medians over the rounds, the last one of the ratios within a round. Both can
hardly be faster than the slower one of the two; on a CPU loading takes from the same cores as the network.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import torch  # noqa: E402 - imports begin at the repository's root
import tyro  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from common.command.config import Device, TrainConfig, parse_config  # noqa: E402
from common.command.recipes import read_recipe  # noqa: E402
from common.data.sampling import EpochBatches  # noqa: E402
from common.networks.precision import choose_precision  # noqa: E402
from common.training import loop  # noqa: E402
from common.training.estimate import estimate  # noqa: E402
from common.training.experiment import Batch, Engine, Experiment  # noqa: E402
from common.training.loading import choose_workers, training_loader  # noqa: E402
from common.training.runs import RunFolder  # noqa: E402
from common.training.schedule import Clock  # noqa: E402

TASKS = ("permeability", "rooftops", "footprints", "potsdam_points", "hela_nuclei")


@dataclass(frozen=True)
class Config:
    """Compare sampler, network and both."""

    batches: int = 10
    """Of a measurement."""
    batch_size: int = 0
    """Samples of a batch (0 = the recipe's)."""
    rounds: int = 3
    """Measurements of each kind that count."""
    device: Device = "auto"
    """Where to compute."""
    threads: int = 0
    """CPU threads of the network (0 = PyTorch's own choice)."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu = the CPU seconds of the training process, on a machine that others use too: what it does besides the network
    shows, waiting for workers does not. Take one thread then."""
    tasks: tuple[str, ...] = TASKS
    """Whose recipes."""


class Same:
    """A loader that has its batch already."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        """Batches."""
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        """The batch, again and again."""
        for _ in range(self.count):
            yield self.batch


def main() -> None:
    """Measure every task and write the table."""
    config = tyro.cli(Config, description=__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    second = "second" if config.clock == "wall" else "CPU second of the training process"
    size = f" of {config.batch_size} samples" if config.batch_size else ""
    note = f"Samples a {second}, median of {config.rounds} rounds of {config.batches} batches{size}; "
    rows = []
    for task in config.tasks:
        rows.append(measure(task, config))
        write_table(Path(__file__), rows, note + processor())


def measure(task: str, config: Config) -> dict[str, object]:
    """A row of the table."""
    train, home = import_module(f"{task}.train"), REPOSITORY / task
    base = read_recipe(home, "best", demo=False)[0]
    recipe: TrainConfig = parse_config(train.Config, ["--weights", "none", "--device", config.device], base)
    precision = choose_precision(recipe.device, recipe.amp)
    recipe = replace(recipe, batch_size=config.batch_size or recipe.batch_size)
    loop.seed_everything(0)
    experiment: Experiment = train.build(recipe, train.load_data(recipe))
    sampler = EpochBatches(len(experiment.train_data), recipe.batch_size, 0)
    experiment.model.to(precision.device)
    expected = estimate(experiment, recipe, len(sampler), precision)
    auto = choose_workers("auto", expected, recipe.epochs * len(sampler), 60 * recipe.max_minutes)
    sampler.first_batch = len(sampler) - config.batches
    loaders = {workers: training_loader(experiment.train_data, sampler, workers) for workers in {0, auto}}
    now = time.monotonic if config.clock == "wall" else time.process_time
    steps = Steps(experiment, replace(recipe, grad_accum=1), sampler, now)
    batch = next(iter(loaders[0]))
    found: dict[str, list[float]] = {}
    for _ in range(config.rounds + 1):
        found.setdefault("network", []).append(steps.speed(cast("DataLoader[Batch]", Same(batch, config.batches))))
        for workers, loader in loaders.items():
            found.setdefault(f"sampler {workers}", []).append(empty_speed(loader, recipe.batch_size, now))
            found.setdefault(f"both {workers}", []).append(steps.speed(loader))
    if config.clock == "cpu" and auto:  # the workers have clocks of their own
        found[f"sampler {auto}"] = [auto * speed for speed in found["sampler 0"]]
    return row(task, {name: values[1:] for name, values in found.items()}, auto)


def row(task: str, found: dict[str, list[float]], auto: int) -> dict[str, object]:
    """Medians and ratios of the rounds."""

    def of_slower(workers: int) -> str:
        rounds = zip(found[f"both {workers}"], found[f"sampler {workers}"], found["network"], strict=True)
        return f"{statistics.median(both / min(sampler, network) for both, sampler, network in rounds):.2f}"

    middle = {name: f"{statistics.median(values):.1f}" for name, values in found.items()}
    return {
        "recipe": f"{task}/best.yaml",
        "network alone": middle["network"],
        "sampler alone": middle["sampler 0"],
        "both, --workers 0": middle["both 0"],
        "both / slower, 0": of_slower(0),
        "auto": f"{auto} workers",
        "sampler alone, auto": middle[f"sampler {auto}"],
        "both, auto": middle[f"both {auto}"],
        "both / slower, auto": of_slower(auto),
    }


class Steps:
    """A training whose steps are timed."""

    def __init__(
        self, experiment: Experiment, config: TrainConfig, sampler: EpochBatches, now: Callable[[], float]
    ) -> None:
        self.precision = choose_precision(config.device, config.amp)
        self.config, self.sampler, self.now = config, sampler, now
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            self.state = loop._begin(experiment, config, run, self.precision, len(sampler))
        self.engine = Engine.of(experiment, self.precision)

    def speed(self, loader: DataLoader[Any]) -> float:
        """Samples a second of the optimization."""
        state, started = self.state, self.now()
        state.batch, state.hits, state.loss_sum = 0, [], 0.0
        loop.train_one_epoch(state, loader, self.engine, Clock(10**6), self.config, state.model)
        if self.precision.device.type == "cuda":
            torch.cuda.synchronize()
        return state.batch * self.sampler.batch_size / (self.now() - started)


def empty_speed(loader: DataLoader[Batch], batch_size: int, now: Callable[[], float]) -> float:
    """Samples a second that are loaded, and no more."""
    started = now()
    count = sum(1 for _ in loader)
    return count * batch_size / (now() - started)


if __name__ == "__main__":
    main()
