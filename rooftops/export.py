"""Write a network as ONNX: ``python rooftops/export.py --checkpoint F --out model.onnx``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.command.cli import run_command
from common.inference.export import export_command
from rooftops.task import TASK


def main() -> int:
    """Load, export, compare."""
    return export_command(TASK)


if __name__ == "__main__":
    run_command(main)
