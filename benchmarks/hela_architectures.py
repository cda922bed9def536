"""UNet against the ResNet-18 encoder on the same frames, recipe and minutes: one table (epochs, minutes, IoU, loss).

    python benchmarks/hela_architectures.py --data-root Fluo-N2DL-HeLa --minutes 6

Both are trained from scratch with hela_nuclei/source.yaml and scored on the same test part at threshold 0.5, as the
original notebook did (IoU = mean over images). The table is written beside this script.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import tyro  # noqa: E402 - imports begin at the repository's root

ARCHITECTURES = ("unet", "unet_resnet18")


@dataclass(frozen=True)
class Config:
    """Compare the two networks of hela_nuclei."""

    data_root: Path
    """Folder in the Cell Tracking Challenge's layout."""
    minutes: float = 6.0
    """Time budget of each training."""
    recipe: Path = REPOSITORY / "hela_nuclei" / "source.yaml"
    """Configuration of both trainings."""


def measure(arch: str, config: Config, folder: Path) -> dict[str, object]:
    """Train and score one network; one row of the table."""
    run = folder / arch
    started = time.monotonic()
    command = [
        sys.executable,
        REPOSITORY / "hela_nuclei/train.py",
        "--data-root",
        config.data_root,
        "--config",
        config.recipe,
    ]
    command += ["--arch", arch, "--max-minutes", config.minutes, "--output-dir", run]
    subprocess.run(list(map(str, command)), check=True)
    minutes = (time.monotonic() - started) / 60
    command = [sys.executable, REPOSITORY / "hela_nuclei/evaluate.py", "--checkpoint", run / "best_iou.pt"]
    command += ["--data-root", config.data_root, "--threshold", 0.5]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    scores = json.loads(done.stdout.splitlines()[-1])
    epochs = len((run / "metrics.csv").read_text().splitlines()) - 1
    names = ("iou_mean_per_image", "iou_foi", "seg", "det", "loss")
    return {
        "network": arch,
        "epochs": epochs,
        "minutes": round(minutes, 1),
        **{name: round(scores[name], 4) for name in names},
    }


def main() -> None:
    """Measure both and write hela_architectures.csv and .md."""
    config = tyro.cli(Config)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(arch, config, Path(folder)) for arch in ARCHITECTURES]
    target = Path(__file__).with_suffix(".csv")
    with target.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    target.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
