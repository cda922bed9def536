"""How long commands take to start, beside ``import torch`` in the same rounds: ``python benchmarks/startup.py``.

Processor seconds are given too: on a busy machine they say more than the clock.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from benchmarks.quick_model import quick_checkpoint
from benchmarks.tables import processor, write_table

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5


def main() -> None:
    """Time all commands in alternating rounds and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = quick_checkpoint(folder / "quick.pt", steps=2)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)).save(folder / "chip.png")
        chip = ["footprints/infer.py", str(folder / "chip.png"), "--checkpoint", str(checkpoint), "--output-dir"]
        commands = {
            'python -c "import torch"': ["-c", "import torch"],
            "seg": ["-m", "common.command.seg"],
            "rooftops/infer.py --help": ["rooftops/infer.py", "--help"],
            "hela_nuclei/train.py --help": ["hela_nuclei/train.py", "--help"],
            "footprints/infer.py, a chip of 256 px": [*chip, str(folder / "out")],
        }
        times: dict[str, list[tuple[float, float]]] = {command: [] for command in commands}
        for _ in range(ROUNDS):
            for command, words in commands.items():
                times[command].append(timed(words))
    base = [middle(times['python -c "import torch"'], kind) for kind in (0, 1)]
    rows = [
        {
            "command": command,
            "seconds": f"{middle(each, 0):.2f}",
            "of import torch": f"{middle(each, 0) / base[0]:.2f}",
            "processor seconds": f"{middle(each, 1):.2f}",
            "of import torch's": f"{middle(each, 1) / base[1]:.2f}",
        }
        for command, each in times.items()
    ]
    write_table(Path(__file__), rows, f"Medians of {ROUNDS} rounds. {processor()}.")


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds and processor seconds of a Python process; it must end well."""
    started, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, spent


def middle(times: list[tuple[float, float]], kind: int) -> float:
    """The median of seconds (0) or processor seconds (1)."""
    return statistics.median(each[kind] for each in times)


if __name__ == "__main__":
    main()
