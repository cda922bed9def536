import csv
import json

import numpy as np
import pytest
import tifffile
import torch

from common.data.augmentation import Augmentation
from common.images.rasters import read_label
from common.networks.checkpoint import load_checkpoint
from potsdam_points.labels import class_counts, read_classes
from potsdam_points.points import class_weights, draw_points, from_points, read_points
from tests.commands import check_resume

FILES = (
    "config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "metrics.csv", "curves.png", "predictions.png",
    "report.html", "points.csv", "class_weights.pt",
)  # fmt: skip


def test_a_run_leaves_what_is_promised_and_learns(trained):
    run, result = trained
    assert [name for name in FILES if not (run / name).is_file()] == []
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert max(float(row["miou"]) for row in rows) > 0.7, result.err
    assert "never labeled:          building, low_vegetation, car: cannot be learned" in result.err
    assert "pairs:                  10" in result.err


def test_the_checkpoint_carries_what_inference_needs(trained):
    card, _, _ = load_checkpoint(trained[0] / "best_iou.pt", "potsdam_points")
    assert (card.scale, card.split["val"], len(card.split["train"])) == (0.5, ["7", "8", "9"], 7)
    assert card.arch_args == {"outputs": 6, "upsample": 2, "widths": [12, 16, 24, 32, 32], "stem": 2}
    assert set(card.normalization) == {"mean", "std"}


def test_saved_points_are_those_drawn_from_the_seed(trained, blobs):
    table = read_points(trained[0] / "points.csv")
    assert sorted(table) == [str(i) for i in range(7)]
    sparse = []
    for name, points in table.items():
        classes = read_classes(blobs / "Labels" / f"Label_{name}.tif")
        sparse.append(from_points(points, 96, 96, source=name))
        assert (sparse[-1] == draw_points(classes, 60, seed=0, image_id=name)).all()
    saved = torch.load(trained[0] / "class_weights.pt", weights_only=True)
    assert saved.shape == (6,)
    assert torch.allclose(saved, class_weights(class_counts(sparse)) ** 0.5)


def test_saved_points_repeat_a_run(trained, blobs, call, small, tmp_path):
    images, points = blobs / "Images", trained[0] / "points.csv"
    result = call(
        "train", "--images", images, "--points-file", points, *small, "--val-last", 2, "--epochs", 1,
        "--samples-per-epoch", 16, "--output-dir", tmp_path / "again",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "training points:        300 (60 an image)" in result.err
    assert "val 2" in result.err


def test_mistakes_before_the_first_step(call, blobs, tmp_path):
    call("train", "--data-root", tmp_path / "no").mistake("--data-root", "no")
    call("train", "--data-root", blobs, "--crop-size", 63).mistake("--crop-size 63")
    call("train", "--data-root", blobs, "--points-file", tmp_path / "no.csv").mistake("no.csv")
    (tmp_path / "x.yaml").write_text("decodr: skip\n")
    call("train", "--data-root", blobs, "--config", tmp_path / "x.yaml").mistake("decodr", "decoder")


def test_unknown_colors_stop_training_unless_told(call, tmp_path, blobs):
    for name in ("Images", "Labels"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for path in (blobs / name).iterdir():
            (tmp_path / "p" / name / path.name).write_bytes(path.read_bytes())
    label = tifffile.imread(tmp_path / "p" / "Labels" / "Label_3.tif")
    label[50, :7] = (10, 20, 30)
    tifffile.imwrite(tmp_path / "p" / "Labels" / "Label_3.tif", label, photometric="rgb")
    call("train", "--data-root", tmp_path / "p").mistake("Label_3.tif", "(10, 20, 30) in 7 pixels", "--unknown ignore")


def test_a_stopped_run_goes_on_to_the_same_weights(call, blobs, small, tmp_path, monkeypatch):
    flags = ["--data-root", blobs, *small, "--epochs", 2, "--samples-per-epoch", 16, "--ema", 0.9]
    check_resume(call, monkeypatch, tmp_path, *flags)


@pytest.mark.parametrize("recipe", ["source", "best", "demo"])
def test_every_shipped_recipe_trains(call, recipe, scene, tmp_path):
    import potsdam_points

    path = f"{potsdam_points.__path__[0]}/{recipe}.yaml"
    result = call(
        "train", "--config", path, "--data-root", scene, "--epochs", 1, "--batch-size", 2, "--samples-per-epoch", 2,
        "--crop-size", 64, "--max-minutes", 0, "--output-dir", tmp_path / recipe,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / recipe / "predictions.png").is_file()


def test_evaluate_prints_one_json_object(trained, blobs, call):
    result = call("evaluate", "--checkpoint", trained[0] / "best_iou.pt", "--data-root", blobs, "--split", "val")
    assert result.code == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])
    assert (scores["task"], scores["split"], scores["n_images"], scores["n_pixels"]) == (
        "potsdam_points",
        "val",
        3,
        3 * 94 * 96,
    )
    assert scores["absent_classes"] == ["building", "low_vegetation", "car"]
    assert scores["per_class_iou"]["building"] is None or scores["per_class_iou"]["building"] == 0
    assert scores["miou"] > 0.7
    assert scores["iou"] is scores["threshold"] is scores["auc"] is None


def test_points_can_be_scored_too(trained, blobs, call):
    checkpoint, points = trained[0] / "best_iou.pt", trained[0] / "points.csv"
    flags = ("--images", blobs / "Images", "--points-file", points, "--split", "all")
    result = call("evaluate", "--checkpoint", checkpoint, *flags)
    assert result.code == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])
    assert (scores["n_images"], scores["n_pixels"]) == (7, 420)
    call("evaluate", *flags).mistake("--checkpoint")


def test_evaluate_refuses_what_it_cannot_know(trained, blobs, scene, call):
    checkpoint = trained[0] / "best_iou.pt"
    call("evaluate", "--checkpoint", checkpoint, "--data-root", blobs).mistake("test part", "--split")
    call("evaluate", "--checkpoint", checkpoint, "--data-root", scene, "--split", "val").mistake("--split all")
    call("evaluate", "--checkpoint", checkpoint).mistake("--data-root")
    call("evaluate", "--data-root", blobs).mistake("--checkpoint")
    call("evaluate", "--checkpoint", checkpoint, "--data-root", blobs, "--split", "all", "--threshold", "0.3").mistake(
        "--threshold"
    )
    assert call("evaluate", "--checkpoint", checkpoint, "--data-root", scene, "--split", "all").code == 0


def test_any_classes_from_points_to_masks_and_scores(call, blobs, small, tmp_path):
    """Ground, disc and square are no classes of Potsdam's; the table names them, in its own spelling."""
    names, table = {0: "ground", 3: "Big disc", 5: "square"}, ["id,x,y,class"]
    for number in range(10):
        drawn = draw_points(read_classes(blobs / "Labels" / f"Label_{number}.tif"), 200, seed=1, image_id=str(number))
        table += [f"{number},{x},{y},{names[drawn[y, x]]}" for y, x in zip(*(drawn != 255).nonzero(), strict=True)]
    points, run = tmp_path / "points.csv", tmp_path / "run"
    points.write_text("\n".join(table))
    classes = ("--classes", "square", "ground", "big disc")
    flags = ("--images", blobs / "Images", "--points-file", points)
    done = call("train", *flags, *classes, *small, "--epochs", 8, "--samples-per-epoch", 64, "--output-dir", run)
    assert done.code == 0, done.err
    assert {row["class"] for row in csv.DictReader((run / "points.csv").read_text().splitlines())} == {
        "square",
        "ground",
        "big disc",
    }
    scored = call("evaluate", "--checkpoint", run / "best_iou.pt", *flags, "--split", "val")
    assert scored.code == 0, scored.err
    scores = json.loads(scored.out.splitlines()[-1])
    assert list(scores["per_class_iou"]) == ["square", "ground", "big disc"] and scores["miou"] > 0.4
    done = call(
        "infer", blobs / "Images" / "Image_8.tif", "--checkpoint", run / "best_iou.pt", "--output-dir", tmp_path
    )
    assert done.code == 0, done.err
    truth = read_classes(blobs / "Labels" / "Label_8.tif")
    mask = next(iter(tmp_path.glob("Image_8_mask.*")))
    assert (read_label(mask, colors=False)[truth == 0] == 1).mean() > 0.8
    call("evaluate", "--checkpoint", run / "best_iou.pt", "--data-root", blobs, "--split", "all").mistake(
        "square, ground, big disc", "--points-file"
    )
    call("train", "--data-root", blobs, *classes).mistake("--points-file")
    call("train", *flags, "--classes", "a b", "A_b").mistake("--classes")


def test_flags_of_training_reach_the_crops(call, blobs, small, monkeypatch):
    seen = {}

    def crops(patches, plan, augment):
        seen.update(plan=plan, augment=augment, labels=[patch.classes for patch in patches])
        raise ValueError("enough")

    monkeypatch.setattr("potsdam_points.train.PointCrops", crops)
    flags = ("--data-root", blobs, *small, "--rotate", 90, "--zoom", 0.1, "--color", 0.4, "--points", 40)
    call("train", *flags, "--augment", "--points-per-step", 30).mistake("enough")
    assert seen["augment"] == Augmentation(rotate=90, zoom=0.1, color=0.4) and seen["plan"].most_points == 30
    uniform = seen["labels"]
    call("train", *flags, "--no-augment", "--point-sampling", "balanced").mistake("enough")
    balanced = [np.bincount(classes[classes != 255]) for classes in seen["labels"]]
    assert seen["augment"] is None and all(classes[classes != 255].size == 40 for classes in uniform)
    assert all(np.ptp(counts[counts > 0]) <= 1 for counts in balanced)
    assert any(np.ptp(np.unique(classes[classes != 255], return_counts=True)[1]) > 1 for classes in uniform)
