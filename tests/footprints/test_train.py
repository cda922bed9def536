import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch

import footprints
from common.data.augmentation import Augmentation
from common.networks.checkpoint import load_checkpoint
from common.scenes.aerial import write_footprints
from common.training import compiling
from tests.commands import check_resume
from tests.footprints.towns import roofs, write_raster

FILES = (
    "config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "metrics.csv", "curves.png", "predictions.png",
    "report.html", "roc.png", "test_metrics.json",
)  # fmt: skip


def test_a_run_leaves_what_is_promised_and_learns(trained):
    run, _, result = trained
    assert [name for name in FILES if not (run / name).is_file()] == []
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4 and max(float(row["miou"]) for row in rows) > 0.8, result.err
    scores = json.loads((run / "test_metrics.json").read_text())
    assert scores["iou"] > 0.7 and scores["auc"] > 0.95
    assert "coordinate systems:     EPSG:32633" in result.err and "as the folders say" in result.err


def test_the_checkpoint_carries_what_inference_needs(trained):
    card, _, _ = load_checkpoint(trained[0] / "best_iou.pt", "footprints")
    assert card.arch_args == {"widths": [8, 16, 24], "stem": 2}
    assert (card.scale, card.classes, set(card.normalization)) == (1.0, ["background", "building"], {"mean", "std"})
    assert all(name.startswith("test/town_") for name in card.split["test"])
    assert 0 < card.threshold < 1


def test_evaluate_prints_one_json_object_from_one_confusion_matrix(trained, call):
    run, crops, _ = trained
    result = call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", crops)
    assert result.code == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])
    labels = []
    for path in (crops / "test" / "labels").iterdir():
        with rasterio.open(path) as file:  # ground that two crops share counts in one of them
            labels.append((file.read(1) > 0)[file.dataset_mask() > 0])
    assert (scores["task"], scores["split"], scores["n_images"]) == ("footprints", "test", len(labels))
    (a, b), (c, d) = scores["confusion_matrix"]
    assert a + b + c + d == scores["n_pixels"] == sum(label.size for label in labels)
    assert c + d == sum(int(label.sum()) for label in labels)
    assert scores["iou"] == pytest.approx(d / (b + c + d)) and scores["precision"] == pytest.approx(d / (b + d))
    assert scores["threshold"] == load_checkpoint(run / "best_iou.pt")[0].threshold
    assert {**scores, "task": 0} == {**json.loads((run / "test_metrics.json").read_text()), "task": 0}


def test_validation_in_training_is_evaluation_of_the_val_part(trained, call):
    run, crops, _ = trained
    result = call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", crops, "--split", "val")
    scores = json.loads(result.out.splitlines()[-1])
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert scores["miou"] == pytest.approx(max(float(row["miou"]) for row in rows), abs=1e-3)
    assert scores["n_images"] == len(list((crops / "val" / "images").iterdir()))


def test_flags_of_evaluation_are_heard(trained, call):
    run, crops, _ = trained

    def scores(*flags):
        return json.loads(
            call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", crops, *flags).out.splitlines()[-1]
        )

    plain, low, flips = scores(), scores("--threshold", 0.01), scores("--tta")
    assert low["threshold"] == 0.01 and low["recall"] >= plain["recall"] and low["precision"] < plain["precision"]
    assert flips["loss"] != plain["loss"] and flips["loss"] == pytest.approx(plain["loss"], abs=0.1)


def test_evaluation_goes_on_without_bad_files(trained, town, call, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "d" / kind).mkdir(parents=True)
        (tmp_path / "d" / kind / "town.tif").symlink_to(town / kind / "town.tif")
        (tmp_path / "d" / kind / "text.tif").write_text("no picture")
    flags = ("--checkpoint", trained[0] / "best_iou.pt", "--data-root", tmp_path / "d", "--split", "all")
    result = call("evaluate", *flags)
    assert result.code == 1 and "text.tif: cannot be read" in result.err
    assert json.loads(result.out.splitlines()[-1])["n_images"] == 1


def test_whole_rasters_are_scored_by_tiles_with_the_same_result(trained, town, call, monkeypatch):
    flags = ("--checkpoint", trained[0] / "best_iou.pt", "--data-root", town, "--split", "all")
    whole = json.loads(call("evaluate", *flags).out.splitlines()[-1])
    monkeypatch.setattr("footprints.evaluate.TILE_SIDE", 128)
    monkeypatch.setattr("footprints.data.MEMORY", 0)
    monkeypatch.setattr("footprints.data.load_scenes.__defaults__", (0, None))
    tiles = json.loads(call("evaluate", *flags).out.splitlines()[-1])
    assert whole["n_images"] == tiles["n_images"] == 1
    assert whole["n_pixels"] == tiles["n_pixels"] == 300 * 420
    assert tiles["iou"] == pytest.approx(whole["iou"], abs=5e-3) and whole["iou"] > 0.7


def test_evaluate_refuses_what_it_cannot_know(trained, scene, call):
    run, crops, _ = trained
    call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", scene).mistake("--split all")
    call("evaluate", "--data-root", crops).mistake("--checkpoint")
    call("evaluate", "--checkpoint", run / "best_iou.pt").mistake("--data-root")
    call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", crops, "--threshold", 2).mistake("--threshold")
    assert call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", scene, "--split", "all").code == 0


def test_bad_pairs_stop_training_unless_told(call, small, tmp_path):
    for number in range(4):
        image, mask = roofs(64, 64, seed=number)
        write_raster(tmp_path / "d" / "images" / f"{number}.tif", image)
        write_raster(tmp_path / "d" / "labels" / f"{number}.tif", mask if number else mask[:50])
    (tmp_path / "d" / "images" / "text.tif").write_text("no picture")
    write_raster(tmp_path / "d" / "labels" / "text.tif", mask)
    result = call("train", "--data-root", tmp_path / "d", *small, "--epochs", 1)
    result.mistake("2 bad file(s)", "--skip-bad")
    assert "0.tif is 64 x 64" in result.err and "text.tif: cannot be read" in result.err
    result = call(
        "train", "--data-root", tmp_path / "d", *small, "--epochs", 1, "--skip-bad", "--output-dir", tmp_path / "run"
    )
    assert result.code == 0, result.err
    assert "train 1, val 1, test 1" in result.err


def test_flags_of_training_reach_the_crops(call, scene, small, monkeypatch):
    seen = {}

    def crops(found, ids, **options):
        seen.update(options, ids=sorted(ids))
        raise ValueError("enough")

    monkeypatch.setattr("footprints.train.FootprintCrops", crops)
    flags = (
        "--data-root", scene, *small, "--samples-per-epoch", 7, "--balance", 0.3, "--rotate", 90, "--zoom", 0.1,
        "--color", 0.4,
    )  # fmt: skip
    call("train", *flags).mistake("enough")
    assert (seen["crop"], seen["length"], seen["balance"]) == (64, 7, 0.3)
    assert seen["augment"] == Augmentation(90, 0.1, 0.4)
    assert seen["ids"] == sorted(f"train/{path.stem}" for path in (scene / "train" / "images").iterdir())
    call("train", *flags, "--no-augment").mistake("enough")
    assert seen["augment"] is None


def test_mistakes_before_the_first_step(call, scene, town, tmp_path):
    call("train", "--data-root", tmp_path / "no").mistake("--data-root", "no")
    call("train", "--data-root", scene, "--loss", "ce+dice").mistake("--loss ce+dice", "several logits")
    call("train", "--data-root", scene, "--crop-size", 20).mistake("--crop-size 20")
    call("train", "--data-root", scene, "--rotate", 270).mistake("--rotate 270")
    call("train", "--data-root", scene, "--balance", 2).mistake("--balance 2")
    call("train", "--data-root", scene, "--zoom", 3).mistake("--zoom 3")
    call("train", "--data-root", scene, "--color", -0.1).mistake("--color -0.1")
    call("train", "--data-root", scene, "--loss", "dice+0.5*partial_ce").mistake("several logits")
    call("train", "--data-root", town).mistake("footprints/crop.py")
    (tmp_path / "x.yaml").write_text("crop_sise: 64\n")
    call("train", "--data-root", scene, "--config", tmp_path / "x.yaml").mistake("crop_sise", "crop_size")


def test_a_stopped_run_goes_on_to_the_same_weights(call, scene, small, tmp_path, monkeypatch):
    flags = ["--data-root", scene, *small, "--epochs", 2, "--samples-per-epoch", 16, "--ema", 0.9, "--color", 0.3]
    check_resume(call, monkeypatch, tmp_path, *flags)


@pytest.mark.parametrize("recipe", ["source", "best", "demo"])
def test_every_shipped_recipe_trains(call, recipe, scene, tmp_path):
    flags = ("--encoder", "resnet34") if recipe == "source" else ()
    result = call(
        "train", "--config", Path(footprints.__path__[0]) / f"{recipe}.yaml", "--data-root", scene, "--epochs", 1,
        "--batch-size", 2, "--samples-per-epoch", 2, "--crop-size", 64, "--max-minutes", 0, *flags,
        "--output-dir", tmp_path / recipe,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / recipe / "predictions.png").is_file()


def test_weights_that_ship_read_fine_rasters_at_their_resolution(call, tmp_path):
    write_footprints(tmp_path / "fine", counts=(4, 1, 1), seed=6, size=320, gsd=0.11)
    flags = [
        "--recipe", "demo", "--data-root", tmp_path / "fine", "--epochs", 1, "--samples-per-epoch", 4, "--crop-size",
        64,
    ]  # fmt: skip
    result = call("train", *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "0.2 (0.11 m per pixel, read at 0.55 m" in result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt", "footprints")
    assert card.scale == pytest.approx(0.2)
    shown = call("evaluate", "--checkpoint", tmp_path / "run" / "best_iou.pt", "--data-root", tmp_path / "fine")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert json.loads(shown.out.splitlines()[-1])["n_pixels"] == 320**2 and rows[0]["val_images"] == "1"
    scratch = call("train", *flags, "--weights", "none", "--scale", 0.5, "--output-dir", tmp_path / "other")
    assert scratch.code == 0 and "0.5 (--scale)" in scratch.err
    call("train", *flags, "--scale", 0.01).mistake("--scale 0.01")


def test_data_workers_read_rasters_for_themselves(call, town, small, tmp_path, monkeypatch):
    assert call("crop", town, tmp_path / "crops", "--size", 96).code == 0
    monkeypatch.setattr("footprints.data.load_scenes.__defaults__", (0, None))
    result = call(
        "train", "--data-root", tmp_path / "crops", *small, "--epochs", 1, "--samples-per-epoch", 16, "--workers", 1,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "read by windows" in result.err
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert np.isfinite(float(row["val_loss"]))


def test_a_compiled_network_is_trained_by_the_command(call, scene, small, tmp_path, monkeypatch):
    used = []

    def eager(model):  # PyTorch's own tracing without the minute of C++
        return torch.compile(model, backend=lambda graph, _: used.append(graph) or graph)

    monkeypatch.setattr(compiling, "torch", SimpleNamespace(compile=eager))
    monkeypatch.setattr(compiling, "_missing", lambda device: None)
    words = ("--data-root", scene, *small, "--epochs", 1, "--samples-per-epoch", 16, "--device", "cpu", "--amp", "off")
    for choice in ("on", "off", "auto"):
        result = call("train", *words, "--compile", choice, "--output-dir", tmp_path / choice)
        assert result.code == 0 and ("compiling the network" in result.err) == (choice == "on"), result.err
    assert used
    rows = [(tmp_path / choice / "metrics.csv").read_text().splitlines()[1].split(",")[:6] for choice in ("on", "off")]
    assert rows[0] == rows[1]
    call("train", *words, "--compile", "maybe").mistake("--compile")

    def broken(graph, _):
        raise OSError("g++ has gone")

    monkeypatch.setattr(compiling, "torch", SimpleNamespace(compile=lambda model: torch.compile(model, backend=broken)))
    result = call("train", *words, "--compile", "on", "--output-dir", tmp_path / "broken")
    result.mistake("cannot be compiled here", "g++ has gone", "use --compile off")
