"""Training in two processes against one: how far gradients, BatchNorm and losses are apart, and what starting costs.

    python benchmarks/training_processes.py

Two real processes (Gloo) and one compute the same batch of five samples with the network and loss of each task
(`tests.sharing.best`); the second process' samples have no labeled pixel. Differences are the largest of all values: of
the gradients and of BatchNorm's running statistics after one step in double precision, of the loss over 20 steps in
single precision. Starting is timed from the command to its end with ``--preview``, which reads the data and builds the
network but trains nothing, median of the rounds. Needs requirements-dev.txt.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import torch  # noqa: E402 - imports begin at the repository's root
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from tests.sharing import STEPS, TASKS, learn, start  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Compare two processes with one."""

    rounds: int = 3
    """Starts of each kind."""


def main() -> None:
    """Compute, start, write the table."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for process in start("compute all", Path(folder)):
            if process.wait():
                raise SystemExit(f"a process ended with {process.returncode}")
        both = torch.load(Path(folder) / "found.pt", weights_only=False)
        one, two = started(Path(folder), config.rounds)
    rows = [differences(task, both) for task in TASKS]
    seconds = f"start of hela_nuclei/train.py --preview: {one:.1f} s, under torchrun with two processes {two:.1f} s"
    write_table(Path(__file__), rows, f"{seconds}; {processor()}")


def differences(task: str, both: dict[str, dict[str, dict[str, Tensor]]]) -> dict[str, str]:
    """A row of the table."""
    alone, shared = learn(task, torch.float64, 1), both[task]
    norms = [name for name in alone["state"] if "running_" in name]
    single, paired = learn(task, torch.float32, STEPS)["losses"], both[f"{task} {STEPS}"]["losses"]
    return {
        "network of": "rooftops, DeepLabV3+" if task == "rooftops" else f"{task}/best.yaml",
        "gradients": f"{max(apart(shared['gradients'][n], v) for n, v in alone['gradients'].items()):.0e}",
        "largest gradient": f"{max(float(v.abs().max()) for v in alone['gradients'].values()):.2g}",
        "BatchNorm statistics": f"{max(apart(shared['state'][n], alone['state'][n]) for n in norms):.0e}",
        f"loss over {STEPS} steps, fp32": f"{max(abs(a - b) for a, b in zip(single, paired, strict=True)):.0e}",
    }


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def started(folder: Path, rounds: int) -> tuple[float, float]:
    """Seconds of the command with one process and with two, taken in turn."""
    command = [str(REPOSITORY / "hela_nuclei" / "train.py"), "--preview", "--device", "cpu", "--output-dir"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(rounds + 1):  # the first one writes the demo's data
        for kind, before in enumerate(([], torchrun)):
            begun = time.monotonic()
            words = [sys.executable, *before, *command, str(folder / f"run-{number}-{kind}")]
            subprocess.run(words, cwd=folder, check=True, capture_output=True)
            seconds[kind].append(time.monotonic() - begun)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


if __name__ == "__main__":
    main()
