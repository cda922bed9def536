import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import rooftops
from common.networks.checkpoint import load_checkpoint
from rooftops.samples import PictureAugmentation
from tests.commands import check_resume

FILES = (
    "config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "metrics.csv", "curves.png", "predictions.png",
    "report.html", "test_metrics.json",
)  # fmt: skip


def test_a_run_leaves_what_is_promised_and_learns(trained):
    run, result = trained
    assert [name for name in FILES if not (run / name).is_file()] == []
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert max(float(row["miou"]) for row in rows) > 0.8, result.err
    assert json.loads((run / "test_metrics.json").read_text())["miou"] > 0.7


def test_what_was_found_is_printed_before_training(trained):
    for line in (
        "pairs:                  12", "size (rows x columns):  96 x 112 (12)", "empty masks:            1",
        "prefixes:               4, up to 3 pictures each", "split:                  train 6, val 3, test 3",
        "left out:               0 labels", "12.330 M parameters",
        "6 training pictures leave much out; --generated 0.25",
    ):  # fmt: skip
        assert line in trained[1].err


def test_generated_towns_among_the_samples(call, roofs, tmp_path):
    small = ("--arch", "unet_small", "--crop-size", 64, "--epochs", 1, "--samples-per-epoch", 8, "--batch-size", 4)
    losses = []
    for share in (0, 1):
        run = tmp_path / str(share)
        flags = ("--weights", "none", "--generated", share, "--device", "cpu", "--amp", "off", "--output-dir", run)
        done = call("train", "--data-root", roofs, *small, *flags)
        assert done.code == 0 and ("leave much out" in done.err) == (not share), done.err
        losses.append(next(csv.DictReader((run / "metrics.csv").read_text().splitlines()))["train_loss"])
    assert losses[0] != losses[1]  # other samples, the same start


def test_the_checkpoint_carries_what_inference_needs(trained):
    card, _, _ = load_checkpoint(trained[0] / "best_iou.pt", "rooftops")
    assert card.scale == pytest.approx(64 / (96 * 112) ** 0.5)
    assert card.arch_args == {"encoder": "resnet18", "outputs": 2, "output_stride": 16, "dropout": 0.1}
    assert card.classes == ["background", "roof"]
    assert set(card.normalization) == {"mean", "std"}
    assert [len(card.split[part]) for part in ("train", "val", "test")] == [6, 3, 3]


def test_mistakes_before_the_first_step(call, roofs, tmp_path):
    call("train", "--data-root", tmp_path / "no").mistake("--data-root", "no")
    call("train", "--data-root", tmp_path).mistake("--images and --labels")
    call("train", "--data-root", roofs, "--crop-size", 100).mistake("--crop-size 100", "multiple of 16")
    call("train", "--data-root", roofs, "--coverage", 0).mistake("--coverage 0")
    call("train", "--data-root", roofs, "--generated", 0.5, "--classes", "own.yaml").mistake(
        "--generated 0.5", "--classes"
    )
    call("train", "--data-root", roofs, "--generated", 1.5).mistake("--generated 1.5")
    call("train", "--data-root", roofs, "--dropout", 1.5).mistake("--dropout 1.5")
    call("train", "--data-root", roofs, "--zoom", 3).mistake("--zoom 3")
    call("train", "--data-root", roofs, "--encoder", "resnet19").mistake("--encoder")
    call("train", "--data-root", roofs, "--loss", "diec").mistake("diec", "dice")
    call("train", "--data-root", roofs, "--classes", tmp_path / "no.yaml").mistake("--classes", "no.yaml")
    (tmp_path / "x.yaml").write_text("encodr: resnet18\n")
    call("train", "--data-root", roofs, "--config", tmp_path / "x.yaml").mistake("encodr", "encoder")


@pytest.fixture
def bad(roofs, tmp_path):
    root = shutil.copytree(roofs, tmp_path / "bad")
    labels = root / "label" / "label"
    (labels / "town0_0_label.tif").unlink()
    odd = np.zeros((96, 112), np.uint8)
    odd[:2, :3], odd[5, 5] = 37, 1
    tifffile.imwrite(labels / "town0_2_label.tif", odd)
    return root


def test_bad_files_stop_training_unless_skipped(call, bad, small, tmp_path):
    result = call("train", "--data-root", bad, *small)
    result.mistake("2 bad file(s)", "--skip-bad")
    listed = [line for line in result.err.splitlines() if line.startswith("bad: ")]
    assert len(listed) == 2
    assert "town0_0.png: has no label" in listed[0]
    assert "town0_2_label.tif: unknown value 37 in 6 pixels" in listed[1]
    flags = ("--split-by", "prefix", "--coverage", 0.5, "--epochs", 1, "--samples-per-epoch", 6)
    result = call("train", "--data-root", bad, *small, "--skip-bad", *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "pairs:                  10" in result.err
    assert "left out:               0 labels without an image, 2 bad files" in result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt", "rooftops")
    assert card.scale == pytest.approx(128 / (96 * 112) ** 0.5)
    towns = [{name.split("_")[0] for name in ids} for ids in card.split.values()]
    assert [len(town) for town in towns] == [2, 1, 1]
    assert len(set.union(*towns)) == 4


def test_a_stopped_run_goes_on_to_the_same_weights(call, roofs, small, tmp_path, monkeypatch):
    flags = ["--data-root", roofs, *small, "--epochs", 2, "--samples-per-epoch", 12, "--ema", 0.9, "--augment"]
    flags += ["--zoom", 0.3, "--rotate", 180, "--color", 0.5, "--cutmix", 0.5]
    check_resume(call, monkeypatch, tmp_path, *flags)


@pytest.mark.parametrize("recipe", ["source", "best", "demo"])
def test_every_shipped_recipe_trains(call, recipe, scene, tmp_path):
    path = Path(rooftops.__path__[0]) / f"{recipe}.yaml"
    result = call(
        "train", "--config", path, "--data-root", scene, "--epochs", 1, "--batch-size", 2, "--samples-per-epoch", 2,
        "--crop-size", 64, "--max-minutes", 0, "--output-dir", tmp_path / recipe,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / recipe / "predictions.png").is_file()


def test_more_classes_in_colors(call, roofs, small, tmp_path):
    """Roofs in two colors by the half they lie in: three classes, argmax, no threshold."""
    colors, root = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8), tmp_path / "three"
    shutil.copytree(roofs / "images" / "images", root / "images")
    (root / "labels").mkdir()
    for path in (roofs / "label" / "label").iterdir():
        label = (tifffile.imread(path) > 0).astype(np.uint8)
        label[:, 56:] *= 2
        Image.fromarray(colors[label]).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(
            root / "labels" / f"{path.stem}.png"
        )
    (tmp_path / "classes.yaml").write_text('ground: "#000000"\nwest: [255, 0, 0]\neast: [0, 0, 255]\n')
    data = ("--data-root", root, "--classes", tmp_path / "classes.yaml")
    run = tmp_path / "run"
    result = call("train", *data, *small, "--epochs", 1, "--samples-per-epoch", 12, "--output-dir", run)
    assert result.code == 0, result.err
    assert "west ((255, 0, 0))" in result.err
    card, _, _ = load_checkpoint(run / "best_iou.pt")
    assert card.classes == ["ground", "west", "east"]
    assert {k: tuple(v) for k, v in card.palette.items()} == {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}
    scores = call("evaluate", *data, "--checkpoint", run / "best_iou.pt")
    assert scores.code == 0, scores.err
    printed = json.loads(scores.out.splitlines()[-1])
    assert set(printed["per_class_iou"]) == {"ground", "west", "east"}
    assert printed["iou"] is printed["threshold"] is None
    call("evaluate", "--data-root", root, "--checkpoint", run / "best_iou.pt").mistake(
        "ground, west, east", "--classes"
    )
    image = root / "images" / "town0_0.png"
    done = call("infer", image, "--checkpoint", run / "best_iou.pt", "--output-dir", tmp_path / "out")
    assert done.code == 0, done.err
    assert tifffile.imread(tmp_path / "out" / "town0_0_prob.tif").size == 3 * 96 * 112


def test_flags_of_training_reach_the_samples(call, roofs, small, monkeypatch, tmp_path):
    seen = {}

    def windows(pictures, ids, **options):
        seen.update(options, ids=set(ids))
        raise ValueError("enough")

    monkeypatch.setattr("rooftops.train.Windows", windows)
    (tmp_path / "suspects.csv").write_text("image\ntown0_0\ntown1_1\n")
    flags = (
        "--data-root",
        roofs,
        *small,
        "--rotate",
        90,
        "--zoom",
        0.1,
        "--color",
        0.4,
        "--blur",
        0.2,
        "--cutmix",
        0.3,
    )
    call("train", *flags, "--augment", "--samples-per-epoch", 7).mistake("enough")
    assert (seen["side"], seen["length"]) == (64, 7)
    assert seen["augment"] == PictureAugmentation(rotate=90, zoom=0.1, color=0.4, blur=0.2, cutmix=0.3)
    everything = seen["ids"]
    call("train", *flags, "--no-augment", "--skip-suspects", tmp_path / "suspects.csv").mistake("enough")
    assert seen["augment"] is None and seen["ids"] == everything - {"town0_0", "town1_1"} != everything
