"""How far do clicks go? ``python potsdam_points/experiments.py --data-root patches --val-last 40 --minutes-per-run 5``.

Trains the source's recipe with and without class weights, ours at several numbers of points, and ours with full labels.
After every run the table and the plot are written anew; runs that are done are not repeated, so the command can be
stopped and started again.

``--active`` asks another question: which points should be clicked next? See `clicks`.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
from matplotlib.figure import Figure

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.command.progress import progress
from common.data.labeled import LabeledImage
from common.files import write_text
from common.report.plots import save
from common.scenes.aerial import potsdam, render_scene
from common.training.runs import own_folder, remove_run, require_run
from potsdam_points import clicks
from potsdam_points.data import find_patches, load_patches, split_patches
from potsdam_points.labels import CLASSES

FOLDER = Path(__file__).resolve().parent
DONE = "experiment.json"
"""In the folder of a run that is finished: how it was trained, and its row of the table."""
SOURCE_POINTS = 20000
"""Points per image of the source's recipe."""
COLUMNS = (
    "run",
    "recipe",
    "points",
    "class_weights",
    "minutes",
    "epochs",
    "miou",
    "pixel_accuracy",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training of the series."""

    name: str
    recipe: str
    points: int
    """Per image; 0 = every labeled pixel."""
    class_weights: bool = True

    def flags(self) -> list[str]:
        """What is passed to train.py besides data, budget and folder."""
        flags = ["--config", str(FOLDER / f"{self.recipe}.yaml"), "--points", str(self.points)]
        weights = "--class-weights" if self.class_weights else "--no-class-weights"
        return [*flags, weights]


@dataclass(frozen=True)
class Config:
    """Measure what points and class weights are worth.

    Examples:
        python potsdam_points/experiments.py --data-root patches --curve 20 300 20000 --minutes-per-run 20
    """

    # Data
    data_root: Path | None = None
    """Folder of patches with dense labels. Without any data flag the built-in demo scenes are used."""
    images: Path | None = None
    """Folder of images, in place of --data-root; needs --labels."""
    labels: Path | None = None
    """Folder of labels."""
    val_last: int = 300
    """The last N ids are validation; every figure is measured on them."""
    val_ids: tuple[str, ...] = ()
    """Ids that are validation, in place of --val-last: names, or ranges of numbers such as 20-29."""
    # Trainings
    curve: tuple[int, ...] = (20, 100, 1000, 20000)
    """Numbers of points per image."""
    only: tuple[str, ...] = ()
    """Names of the runs to do; default all: source, source-unweighted, points-N, full."""
    minutes_per_run: float = 5.0
    """Time budget of each training."""
    # Output
    output_dir: Path = Path("runs/potsdam_points/experiments")
    """Where the trainings go; those that are finished there are not repeated."""
    results_dir: Path | None = None
    """Where table and plot go; default: results in --output-dir."""
    # Machine
    seed: int = 0
    """Seed of points, weights and order."""
    device: str = "auto"
    """Where to compute."""
    # Simulated clicks
    active: bool = False
    """Instead of training: simulate sessions of clicking, with several ways to choose the next points."""
    seeds: int = 5
    """Of --active: sessions of each strategy, each on pictures of its own."""
    rounds: int = 20
    """Of --active: rounds of a session."""
    clicks: int = 20
    """Of --active: clicks of a round."""
    pool: int = 40
    """Of --active: pictures on which is clicked, drawn from the training part."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if min(self.seeds, self.rounds, self.clicks, self.pool) < 1:
            raise ValueError("--seeds, --rounds, --clicks and --pool must be greater than 0")
        if self.minutes_per_run <= 0 or min(self.curve, default=1) < 1:
            raise ValueError("--minutes-per-run and the numbers of --curve must be greater than 0")
        unknown = [name for name in self.only if name not in [run.name for run in series(self.curve)]]
        if unknown:
            known = ", ".join(run.name for run in series(self.curve))
            raise ValueError(f"--only {unknown[0]} is no run of this series; they are {known}")

    @property
    def results(self) -> Path:
        """Where table and plot go."""
        return self.results_dir or self.output_dir / "results"

    def settings(self, run: Run) -> dict[str, Any]:
        """All that a run's figures depend on."""
        data = [str(path.resolve()) for path in (self.data_root, self.images, self.labels) if path]
        split = list(self.val_ids) or self.val_last
        return {"data": data, "split": split, "minutes": self.minutes_per_run, "seed": self.seed, "points": run.points}


def series(curve: Sequence[int]) -> list[Run]:
    """All runs, in the order of their use: recipes first (with the source's points), then the curve."""
    return [
        Run("source", "source", SOURCE_POINTS),
        Run("source-unweighted", "source", SOURCE_POINTS, class_weights=False),
        Run("full", "best", 0),
        *(Run(f"points-{points}", "best", points) for points in sorted(curve)),
    ]


def main() -> int:
    """Train what is not trained yet, and write the table after every run."""
    config = parse_flags(Config)
    if config.active:
        return compare_strategies(config)
    rows = {run.name: finished(run, config) for run in series(config.curve)}
    own_folder(config.results, "experiments.py", "--results-dir")
    wanted = [run for run in series(config.curve) if not config.only or run.name in config.only]
    left = [run for run in wanted if rows[run.name] is None]
    minutes = len(left) * (config.minutes_per_run + 1)
    say(f"{len(left)} trainings, {minutes:g} min at most in all; stop when you like, the same command goes on")
    for number, run in enumerate(left, start=1):
        minutes = (len(left) - number + 1) * (config.minutes_per_run + 1)
        say(f"run {number} of {len(left)}, {run.name}: {config.minutes_per_run:g} min; {minutes:g} min to go at most")
        rows[run.name] = train(run, config)
        if done := [row for row in rows.values() if row]:
            write_results(done, config.results)
    done = [row for row in rows.values() if row]
    if not done:
        raise ValueError("no run succeeded; see the messages above")
    write_results(done, config.results)
    print((config.results / "experiments.md").read_text(encoding="utf-8"), flush=True)
    return PARTIAL if any(rows[run.name] is None for run in wanted) else 0


def compare_strategies(config: Config) -> int:
    """Simulate sessions with every strategy; write active_<data>.csv, .md and .png."""
    own_folder(config.results, "experiments.py", "--results-dir")
    network, real = clicks.body(), None
    if config.data_root or config.images:
        real = labeled_patches(config)

    def grounds(seed: int) -> tuple[clicks.Ground, clicks.Ground]:
        pool, held_out = real or (generated(2 * seed, config.pool), generated(2 * seed + 1, config.pool))
        order = np.random.default_rng(seed).permutation(len(pool))[: config.pool]
        return clicks.look(network, [pool[i] for i in order]), clicks.look(network, held_out)

    rows = clicks.compare(grounds, config.seeds, config.rounds, config.clicks, list(clicks.STRATEGIES))
    name = "active_" + ((config.data_root or config.images or Path("generated")).name)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["strategy", "seed", "full", *(config.clicks * (n + 1) for n in range(config.rounds))])
    table.writerows(
        [row["strategy"], row["seed"], f"{row['full']:.4f}", *(f"{v:.4f}" for v in row["curve"])] for row in rows
    )
    write_text(config.results / f"{name}.csv", text.getvalue())
    write_text(config.results / f"{name}.md", clicks.markdown(rows, config.clicks))
    save(clicks.figure(rows, config.clicks), config.results / f"{name}.png")
    print(clicks.markdown(rows, config.clicks), flush=True)
    return 0


def labeled_patches(config: Config) -> tuple[list[LabeledImage], list[LabeledImage]]:
    """The training and the validation part of the user's data.

    Raises:
        ValueError: a patch cannot be used; names the first.
    """
    found, _ = find_patches(config.data_root, images=config.images, labels=config.labels)
    loaded, problems = load_patches(found)
    if problems:
        raise ValueError(problems[0])
    split = split_patches([patch.id for patch in loaded], config.val_last, 0, 0, config.seed, val_ids=config.val_ids)
    train, val = (set(split[part]) for part in ("train", "val"))
    return [patch for patch in loaded if patch.id in train], [patch for patch in loaded if patch.id in val]


def generated(seed: int, count: int) -> list[LabeledImage]:
    """Scenes of a generated town."""
    scenes = []
    for i in progress(range(count), "generating pictures", "picture"):
        image, classes = render_scene(10_000 * (seed + 1) + i, 300, 300, 0.2)
        scenes.append(LabeledImage(str(i), image.transpose(2, 0, 1), potsdam(classes)))
    return scenes


def finished(run: Run, config: Config) -> Row | None:
    """The row of a run that is done; None = it is to be trained.

    Raises:
        ValueError: it was trained otherwise, or something else than a run lies in its place.
    """
    folder = config.output_dir / run.name
    if not (folder / DONE).is_file():
        require_run(folder)
        return None
    try:
        found = json.loads((folder / DONE).read_text(encoding="utf-8"))
        row, settings = dict(found["row"]), dict(found["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / DONE} is damaged ({error}); choose another --output-dir") from error
    wanted = config.settings(run)
    if other := [name for name in wanted if settings.get(name) != wanted[name]]:
        raise ValueError(
            f"the run in {folder} had another {' and '.join(other)}, such as {other[0]} {settings.get(other[0])} and "
            f"not {wanted[other[0]]}; choose another --output-dir"
        )
    return row


def train(run: Run, config: Config) -> Row | None:
    """Train and evaluate one run from its beginning; its row, which its folder keeps, or None if it failed."""
    folder = config.output_dir / run.name
    remove_run(folder)  # stopped half-way: a second half-budget would not be comparable
    data = [
        f"--{name.replace('_', '-')}={value}"
        for name in ("data_root", "images", "labels")
        if (value := getattr(config, name))
    ]
    split = ["--val-ids", *config.val_ids] if config.val_ids else ["--val-last", str(config.val_last)]
    command = [*run.flags(), *data, *split, "--max-minutes", str(config.minutes_per_run)]
    command += ["--seed", str(config.seed), "--device", config.device, "--output-dir", str(folder)]
    code = subprocess.run(
        [sys.executable, str(FOLDER / "train.py"), *command], check=False, stdout=sys.stderr
    ).returncode
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        say(f"failed: run {run.name} ended with exit code {code}")
        return None
    row = row_of(run, config, folder)
    write_text(folder / DONE, json.dumps({"settings": config.settings(run), "row": row}, indent=1) + "\n")
    return row


def row_of(run: Run, config: Config, folder: Path) -> Row:
    """A run's line of the table: the best epoch by validation mIoU, as metrics.csv has it."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    best = max(epochs, key=lambda epoch: float(epoch["miou"]))
    per_class = {name: float(text) if (text := best[f"iou_{name}"]) else None for name in CLASSES}
    return {
        "run": run.name,
        "recipe": run.recipe,
        "points": run.points or "all",
        "class_weights": run.class_weights,
        "minutes": config.minutes_per_run,
        "epochs": len(epochs),
        "miou": float(best["miou"]),
        "pixel_accuracy": float(best["pixel_accuracy"]),
        **{f"iou_{name}": value for name, value in per_class.items()},
    }


def write_results(rows: Sequence[Row], folder: Path) -> None:
    """Write experiments.csv, experiments.md and points_curve.png."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / "experiments.csv", text.getvalue())
    write_text(folder / "experiments.md", markdown(rows))
    save(curve_figure(rows), folder / "points_curve.png")


def markdown(rows: Sequence[Row]) -> str:
    """The table with each run's mIoU relative to full supervision."""
    full = next((row["miou"] for row in rows if row["run"] == "full"), None)
    seen = [name for name in CLASSES if any(row[f"iou_{name}"] is not None for row in rows)]
    header = [
        "run",
        "points",
        "class weights",
        "minutes",
        "epochs",
        "mIoU",
        "of full",
        "accuracy",
        *seen,
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        share = f"{row['miou'] / full:.0%}" if full else "-"
        cells = [
            row["run"],
            row["points"],
            yes(row["class_weights"]),
            row["minutes"],
            row["epochs"],
        ]
        cells += [
            f"{row['miou']:.3f}",
            share,
            f"{row['pixel_accuracy']:.3f}",
            *(number(row[f"iou_{name}"]) for name in seen),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    note = "mIoU: mean over the classes that occur in the validation patches; the best epoch of each run."
    return "\n".join([*lines, "", note, ""])


def yes(value: object) -> str:
    """Yes or no."""
    return "yes" if value else "no"


def number(value: float | None) -> str:
    """Three decimals; a dash for undefined."""
    return "-" if value is None else f"{value:.3f}"


def curve_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot mIoU against points per image, and full supervision as a line."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    chosen = [row for row in rows if row["recipe"] == "best" and row["points"] != "all"]
    if points := sorted((int(row["points"]), float(row["miou"])) for row in chosen):
        axes.plot(*zip(*points, strict=True), "o-", label="labeled points")
    for row in rows:
        if row["run"] == "full":
            axes.axhline(row["miou"], color="black", linewidth=1, label="every pixel labeled")
    for name, color in (("source", "#cc79a7"), ("source-unweighted", "#999999")):
        for row in rows:
            if row["run"] == name:
                axes.plot(int(row["points"]), row["miou"], "D", color=color, label=name)
    axes.set(xscale="log", xlabel="labeled points per image", ylabel="validation mIoU")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
