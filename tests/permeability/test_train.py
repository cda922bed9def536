import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.checkpoint import load_checkpoint
from common.config import read_yaml
from tests.permeability.sheets import write_raster

FOLDER = Path(__file__).resolve().parents[2] / "permeability"


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_training_learns_what_color_tells_and_leaves_everything_behind(trained):
    run, result = trained
    history = rows(run)
    assert len(history) == 4 and max(float(row["miou"]) for row in history) > 0.75
    for name in ("config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "curves.png", "predictions.png",
                 "report.html", "test_metrics.json"):  # fmt: skip
        assert (run / name).is_file()
    scores = json.loads((run / "test_metrics.json").read_text())
    assert scores["miou"] > 0.75 and set(scores["per_class_iou"]) == {"No permeable", "Permeable"}
    assert scores["iou"] == scores["per_class_iou"]["Permeable"] and scores["n_images"] == 1
    for word in ("5 orthophotos", "train 3, val 1, test 1", "measured:", "mask pixels"):
        assert word in result.err


def test_the_checkpoint_knows_what_inference_needs(trained):
    card, state, _ = load_checkpoint(trained[0] / "best_iou.pt", "permeability")
    assert (card.arch, card.arch_args["encoder"], card.arch_args["outputs"]) == ("fpn", "resnet18", 2)
    assert card.classes == ["No permeable", "Permeable"] and card.palette[1] == (0, 128, 0)
    assert card.split["val"] == ["val/suelo3"] and len(card.split["train"]) == 3
    mean = np.array(card.normalization["mean"])
    assert ((mean > 0.2) & (mean < 0.6)).all() and mean[1] > mean[0] > mean[2]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_source_normalization_is_stored_too(easy, call, tmp_path, small):
    flags = [*small, "--normalization", "source", "--epochs", "1", "--samples-per-epoch", "4"]
    result = call("train", "--data-root", easy, *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.normalization == {"mean": [0.4312, 0.4267, 0.3845], "std": [0.2263, 0.2065, 0.1923]}


def test_a_training_at_another_resolution_is_scored_at_the_files_own(easy, call, tmp_path, small):
    flags = [*small, "--resolution", "1.0", "--crop-size", "32", "--epochs", "1", "--samples-per-epoch", "8"]
    result = call("train", "--data-root", easy, *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.scale == 0.5
    assert json.loads((tmp_path / "run" / "test_metrics.json").read_text())["n_pixels"] == 112 * 128


def test_four_bands(tmp_path, call, small):
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 255, (4, 70, 70), np.uint8)
        place = {"left": 1000.0 * number}
        write_raster(tmp_path / "photos" / f"{number}.tif", image, photometric="MINISBLACK", **place)
        write_raster(tmp_path / "masks" / f"m{number}.tif", (image[3] > 127).astype(np.uint8), **place)
    flags = ["--images", tmp_path / "photos", "--labels", tmp_path / "masks", *small, "--channels", "4"]
    flags += ["--epochs", "1", "--samples-per-epoch", "4"]
    result = call("train", *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, state, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.arch_args["channels"] == 4 and len(card.normalization["mean"]) == 4
    assert state["encoder.conv1.weight"].shape[1] == 4
    flags[flags.index("measured")] = "source"
    call("train", *flags, "--output-dir", tmp_path / "other").mistake("--channels 4", "measured")


def test_a_killed_training_goes_on(easy, started, call, tmp_path, small):
    flags = ["--data-root", easy, *small, "--epochs", "30", "--samples-per-epoch", "8", "--flips"]
    process = started("train", *flags, "--output-dir", tmp_path / "run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(rows(tmp_path / "run"))
    result = call(
        "train", "--resume", "auto", "--output-dir", tmp_path / "run", "--data-root", easy, "--epochs", done + 2
    )
    assert result.code == 0, result.err
    assert [int(row["epoch"]) for row in rows(tmp_path / "run")] == list(range(1, done + 3)) and "resumed" in result.err


def test_mistakes_are_told(easy, call, tmp_path, small):
    def told(*words, root=easy, extra=()):
        call("train", "--data-root", root, *small, *extra, "--output-dir", tmp_path / "run").mistake(*words)

    told("--data-root", "no", root=tmp_path / "no")
    told("unetplusplus", "mit_b0", extra=("--arch", "unetplusplus", "--encoder", "mit_b0"))
    told("--balance", extra=("--balance", "2"))
    told("--crop-size 8", extra=("--crop-size", "8"))
    told("unknown loss", extra=("--loss", "mse"))
    bad = tmp_path / "bad"
    image, mask = np.zeros((3, 40, 40), np.uint8), np.ones((40, 40), np.uint8)
    mask[:9] = 0
    for number in range(3):
        write_raster(bad / "photos" / f"{number}.tif", image, left=1000.0 * number)
        crs = "EPSG:25829" if number == 2 else "EPSG:25830"
        write_raster(bad / "masks" / f"{number}.tif", mask + 5 * (number == 1), left=1000.0 * number, crs=crs)
    flags = ["--images", bad / "photos", "--labels", bad / "masks", *small, "--output-dir", tmp_path / "run"]
    call("train", *flags).mistake("1.tif", "bad file")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["demo", "source", "best", "deeplabv3plus_mit_b4"])
def test_every_recipe_runs(name, easy, call, tmp_path):
    recipe = read_yaml(FOLDER / f"{name}.yaml")
    flags = ["--config", FOLDER / f"{name}.yaml", "--data-root", easy, "--crop-size", "64", "--batch-size", "1"]
    flags += ["--epochs", "1", "--samples-per-epoch", "2", "--max-minutes", "0", "--output-dir", tmp_path / "run"]
    if recipe["encoder"] == "mit_b4":
        flags += ["--encoder", "mit_b0"]
    result = call("train", *flags)
    assert result.code == 0, result.err
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["arch"] == recipe["arch"] and saved["loss"] == recipe["loss"]


def test_both_names_of_the_sources_recipe_are_the_same():
    recipe = read_yaml(FOLDER / "source.yaml")
    assert recipe == read_yaml(FOLDER / "deeplabv3plus_mit_b4.yaml")
    expected = {"lr": 6e-5, "weight_decay": 1e-5, "batch_size": 3, "grad_accum": 2, "epochs": 250, "crop_size": 512,
                "samples_per_epoch": 1024, "lr_factor": 0.3, "lr_patience": 10, "label_smoothing": 0.05}  # fmt: skip
    assert {key: float(recipe[key]) for key in expected} == expected
