"""Write a network as ONNX: ``python rooftops/export.py --checkpoint F --out model.onnx``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first("common/inference/export.py")

from common.command.cli import run_command
from common.inference.export import export_command
from rooftops.task import TASK

main = partial(export_command, TASK)

if __name__ == "__main__":
    run_command(main)
