"""Search for the best settings: ``python permeability/tune.py --engine optuna --trials 30 --storage search.json``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first("common/training/tune.py")

import torch

from common.command.cli import run_command
from common.training.tune import tune
from permeability import train
from permeability.task import TASK


def check(config: train.Config) -> None:
    """Build the network of a configuration, without memory for its weights.

    Raises:
        ValueError: the architecture does not take the encoder.
    """
    with torch.device("meta"):
        TASK.build(config.arch, **train.network_args(config))


main = partial(tune, TASK, train, check)

if __name__ == "__main__":
    run_command(main)
