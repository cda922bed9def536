"""One flag's values against each other on a task's data (ablation): epochs, minutes, scores, a row per training.

    python benchmarks/ablation.py --task hela_nuclei --flag arch --values unet --recipe hela_nuclei/source.yaml \
        --data-root Fluo-N2DL-HeLa --threshold 0.5 \
        --more=--epochs=5 --more=--lr=1e-3 --more=--crop-size=256 --more=--samples-per-epoch=128
    python benchmarks/ablation.py --task rooftops --flag encoder --values resnet18 resnet50 efficientnet_b0 \
        --data-root rooftops_data --more=--arch=deeplabv3plus --more=--weights=none \
        --more=--epochs=4 --more=--crop-size=128 --more=--max-minutes=0
    python benchmarks/ablation.py --task footprints --flag weights --values shipped --seeds 0 1 2 \
        --data-root crops --more=--max-minutes=5

All are scored on the same part that no training saw. Minutes are the processor's, of training and scoring. The tables
are ablation_<task>_<flag>.csv and .md beside this script; a training done is written at once, and a later call adds its
rows to those of other values, seeds and recipes.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import tyro  # noqa: E402 - imports begin at the repository's root

from benchmarks.tables import processor, write_table  # noqa: E402
from common.networks.checkpoint import load_checkpoint  # noqa: E402

SCORES = {
    "footprints": ("iou", "miou"),
    "rooftops": ("miou", "iou", "boundary_f1"),
    "permeability": ("miou", "pixel_accuracy"),
    "potsdam_points": ("miou", "pixel_accuracy"),
    "hela_nuclei": ("iou_mean_per_image", "iou_foi", "seg", "det"),
}
"""What a task is judged by, besides the loss."""


@dataclass(frozen=True)
class Config:
    """Train and score with each value of a flag."""

    task: Literal["footprints", "rooftops", "permeability", "potsdam_points", "hela_nuclei"]
    """Whose training."""
    flag: str
    """The training's flag."""
    values: tuple[str, ...]
    """Its values, a training each."""
    data_root: Path
    """Folder in the task's layout."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings: one each for every value."""
    recipe: Path | None = None
    """Configuration of all trainings; default: the task's best.yaml."""
    more: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another flag of all trainings, such as --more=--lr=1e-3."""
    split: Literal["val", "test"] = "test"
    """The part that is scored; a validation part also chose the epoch."""
    threshold: float | None = None
    """Of the scores; default: the one that the training chose."""


def measure(value: str, seed: int, recipe: str, config: Config) -> dict[str, object]:
    """Train and score once; one row of the table."""
    started = os.times()
    with tempfile.TemporaryDirectory() as folder:
        run, task = Path(folder) / "run", REPOSITORY / config.task
        words = [task / "train.py", "--data-root", config.data_root, "--output-dir", run, "--seed", seed]
        words += ["--config", config.recipe or task / "best.yaml", f"--{config.flag}", value, *config.more]
        subprocess.run([sys.executable, *map(str, words)], check=True)
        words = [task / "evaluate.py", "--checkpoint", run / "best_iou.pt", "--data-root", config.data_root]
        words += ["--split", config.split, *([] if config.threshold is None else ["--threshold", config.threshold])]
        done = subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
        scores = json.loads(done.stdout.splitlines()[-1])
        weights = load_checkpoint(run / "best_iou.pt")[1]
        epochs = len((run / "metrics.csv").read_text().splitlines()) - 1
    ended = os.times()
    seconds = ended.children_user + ended.children_system - started.children_user - started.children_system
    return {
        config.flag: value,
        "seed": seed,
        "M parameters": round(sum(each.numel() for each in weights.values()) / 1e6, 2),
        "epochs": epochs,
        "CPU minutes": round(seconds / 60, 1),
        **{name: round(scores[name], 4) for name in (*SCORES[config.task], "loss")},
        f"{config.split} images": scores["n_images"],
        "recipe": recipe,
    }


def spread(rows: list[dict[str, object]], flag: str, scores: tuple[str, ...]) -> str:
    """Mean and standard deviation over seeds, a line for every value and recipe that has several."""

    def training(row: dict[str, object]) -> tuple[str, str]:
        return str(row[flag]), str(row["recipe"])

    lines = []
    for (value, recipe), group in groupby(sorted(rows, key=training), training):
        seeds = list(group)
        columns = {name: [float(str(row[name])) for row in seeds] for name in scores}
        if len(seeds) > 1:
            found = ", ".join(f"{name} {mean(each):.4f} +- {stdev(each):.4f}" for name, each in columns.items())
            lines.append(f"- {value}, {recipe}, {len(seeds)} seeds: {found}")
    return "\n".join(lines)


def main() -> None:
    """Measure all, writing the table after each."""
    config = tyro.cli(Config)
    name = config.recipe or REPOSITORY / config.task / "best.yaml"
    recipe = " ".join([f"{name.parent.name}/{name.name}", *config.more, f"({processor()})"])
    script = Path(__file__).with_stem(f"ablation_{config.task}_{config.flag}")
    table = script.with_suffix(".csv")
    for value in config.values:
        for seed in config.seeds:
            row = measure(value, seed, recipe, config)
            done: list[dict[str, object]] = []
            if table.is_file():
                with table.open(newline="") as file:
                    done = [dict(each) for each in csv.DictReader(file)]
            key = [value, str(seed), recipe]
            rows = [each for each in done if [each[config.flag], each["seed"], each["recipe"]] != key] + [row]
            write_table(script, rows, spread(rows, config.flag, SCORES[config.task]))


if __name__ == "__main__":
    main()
