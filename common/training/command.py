"""What every ``train.py`` does, in the same order: load data, build, fit, finish."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common import processes
from common.command.config import TrainConfig
from common.command.progress import Work
from common.networks.precision import Precision, choose_precision
from common.networks.task import Task
from common.report.plots import History
from common.training.experiment import Experiment
from common.training.loop import fit, seed_everything
from common.training.pictures import preview
from common.training.runs import RunFolder, load_train_config, open_run
from common.training.together import check_processes, together

LEAST_BYTES = 100
"""Of memory that training takes for every pixel of a batch, whatever the network: its input and first features."""
Config = TypeVar("Config", bound=TrainConfig)
Data = TypeVar("Data")


def run_training(
    task: Task,
    config_type: type[Config],
    folder: Path,
    load_data: Callable[[Config], Data],
    build: Callable[[Config, Data], Experiment],
    finish: Callable[[RunFolder, Config, Data, History, Precision], None],
) -> int:
    """Train a task's network as the command line says.

    Args:
        task: what is trained.
        config_type: its flags.
        folder: its folder, which holds the YAML files.
        load_data: opens, checks and splits the data, and prints what they are.
        build: makes the network with its initial weights, its card, and the samples.
        finish: scores the best network on the test part, and writes pictures and report.

    Returns:
        The exit code.
    """

    def open_training() -> tuple[Config, RunFolder]:
        config = load_train_config(config_type, folder)
        return config, open_run(task.name, config)

    def prepare() -> tuple[Data, Experiment]:
        seed_everything(config.seed)
        with Work("reading and checking the data"):
            data = load_data(config)
        with Work("building the network and its samples"):
            experiment = build(config, data)
        check_memory(config, len(experiment.train_data))
        check_processes(config, len(experiment.train_data))
        return data, experiment

    with together():
        config, run = processes.from_first(open_training)
        precision = processes.in_turn(lambda: choose_precision(config.device, config.amp))
        data, experiment = processes.in_turn(prepare)
        first = processes.is_first()
        if config.preview:
            return preview(experiment, run, config.seed) if first else 0
        state = fit(experiment, config, run, precision)
    if first:  # alone from here on
        finish(run, config, data, state.history, precision)
    return 0


def check_memory(config: TrainConfig, samples: int) -> None:
    """Refuse batches that the machine's memory cannot hold, before the system ends the process without a word.

    Args:
        config: the resolved configuration; its ``crop_size`` is the side of a sample.
        samples: in the training set; a batch is never larger.

    Raises:
        ValueError: they need more memory than there is; names the flags.
    """
    side, batch = vars(config)["crop_size"], min(config.batch_size, samples)
    needed = LEAST_BYTES * batch * side * side
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > memory:
        raise ValueError(
            f"a batch of {batch} samples of {side} x {side} pixels needs at least {needed / 1e9:.0f} GB, there are "
            f"{memory / 1e9:.0f}; lower --batch-size (raise --grad-accum to compensate) or --crop-size"
        )
