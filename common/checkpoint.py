"""What a checkpoint is: ``python -m common.checkpoint FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

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
