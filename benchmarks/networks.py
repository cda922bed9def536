"""Networks of a task on the same data and recipe, one table (epochs, minutes, IoU, loss).

    python benchmarks/networks.py --task hela_nuclei --flag arch --values unet \
        --data-root Fluo-N2DL-HeLa --more=--epochs=5 --more=--lr=1e-3 --more=--crop-size=256 \
        --more=--samples-per-epoch=128
    python benchmarks/networks.py --task rooftops --flag encoder --values resnet18 resnet50 efficientnet_b0 \
        --data-root rooftops_data --recipe rooftops/best.yaml --more=--arch=deeplabv3plus --more=--weights=none \
        --more=--epochs=4 --more=--crop-size=128 --more=--max-minutes=0

All are trained from scratch and scored on the same test part, nuclei at threshold 0.5 as the original notebook did
(IoU = mean over images). Minutes are the processor's, of training and scoring, so that a busy machine changes little.
The table is written beside this script, as networks_<task>.csv and .md; further networks are added to it.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import tyro  # noqa: E402 - imports begin at the repository's root

from benchmarks.tables import processor, write_table  # noqa: E402
from common.networks.checkpoint import load_checkpoint  # noqa: E402

SCORES = {"hela_nuclei": ("iou_mean_per_image", "iou_foi", "seg", "det"), "rooftops": ("miou", "iou", "boundary_f1")}
"""What a task is judged by, besides the loss."""


@dataclass(frozen=True)
class Config:
    """Compare networks of a task."""

    task: Literal["hela_nuclei", "rooftops"]
    """Whose networks."""
    flag: str
    """The training's flag that names the network."""
    values: tuple[str, ...]
    """Its values, a training each."""
    data_root: Path
    """Folder in the task's layout."""
    recipe: Path | None = None
    """Configuration of all trainings; default: the task's source.yaml."""
    more: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another flag of all trainings, such as --more=--lr=1e-3."""


def measure(value: str, config: Config, folder: Path) -> dict[str, object]:
    """Train and score one network; one row of the table."""
    run, task = folder / value, REPOSITORY / config.task
    recipe = config.recipe or task / "source.yaml"
    words = [task / "train.py", "--data-root", config.data_root, "--config", recipe, "--output-dir", run]
    words += [f"--{config.flag}", value, *config.more]
    started = os.times()
    subprocess.run([sys.executable, *map(str, words)], check=True)
    words = [task / "evaluate.py", "--checkpoint", run / "best_iou.pt", "--data-root", config.data_root]
    words += ["--threshold", 0.5] if config.task == "hela_nuclei" else []
    done = subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    scores = json.loads(done.stdout.splitlines()[-1])
    ended = os.times()
    seconds = ended.children_user + ended.children_system - started.children_user - started.children_system
    weights = load_checkpoint(run / "best_iou.pt")[1]
    return {
        config.flag: value,
        "M parameters": round(sum(each.numel() for each in weights.values()) / 1e6, 2),
        "epochs": len((run / "metrics.csv").read_text().splitlines()) - 1,
        "CPU minutes": round(seconds / 60, 1),
        **{name: round(scores[name], 4) for name in (*SCORES[config.task], "loss")},
        "test images": scores["n_images"],
        "recipe": " ".join([f"{recipe.parent.name}/{recipe.name}", *config.more]),
    }


def earlier(path: Path, config: Config) -> list[dict[str, object]]:
    """Rows of networks that are not measured now, from the table so far."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file) if row.get(config.flag) not in (None, *config.values)]


def main() -> None:
    """Measure all and write the table; networks that were measured before stay in it."""
    config = tyro.cli(Config)
    script = Path(__file__).with_stem(f"networks_{config.task}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(value, config, Path(folder)) for value in config.values]
    write_table(script, [*earlier(script.with_suffix(".csv"), config), *rows], f"{processor()}.")


if __name__ == "__main__":
    main()
