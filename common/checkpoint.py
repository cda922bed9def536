"""What a checkpoint is: ``python common/checkpoint.py FILE``, from any folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.command.cli import run_command
from common.networks.checkpoint import describe


def main() -> int:
    """Print what the checkpoints named on the command line are."""
    parser = argparse.ArgumentParser(description="Print what a checkpoint is.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args().files:
        print(describe(path))
    return 0


if __name__ == "__main__":
    run_command(main)
