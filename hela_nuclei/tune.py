"""Search for the best settings: ``python hela_nuclei/tune.py --engine optuna --trials 30 --storage search.json``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first("common/training/tune.py")

from common.command.cli import run_command
from common.training.tune import tune
from hela_nuclei import train
from hela_nuclei.task import TASK

main = partial(tune, TASK, train)

if __name__ == "__main__":
    run_command(main)
