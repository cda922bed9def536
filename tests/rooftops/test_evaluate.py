import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.networks.checkpoint import load_checkpoint


def scores_of(result, code=0):
    assert result.code == code, result.err
    return json.loads(result.out.splitlines()[-1])


def test_the_last_line_is_one_json_object(trained, roofs, call):
    flags = ("--data-root", roofs, "--amp", "off")
    scores = scores_of(call("evaluate", "--checkpoint", trained[0] / "best_iou.pt", *flags))
    assert (scores["task"], scores["split"], scores["n_images"]) == ("rooftops", "test", 3)
    assert scores["n_pixels"] == 3 * 96 * 112
    assert set(scores["per_class_iou"]) == {"background", "roof"}
    assert scores["iou"] == scores["per_class_iou"]["roof"]
    assert scores["miou"] > 0.7
    assert json.loads((trained[0] / "test_metrics.json").read_text()) == scores


def test_validation_scores_are_those_of_the_training(trained, roofs, call):
    """Both read at the training's scale and compare at the labels' size."""
    scores = scores_of(
        call("evaluate", "--checkpoint", trained[0] / "best_iou.pt", "--data-root", roofs, "--split", "val")
    )
    rows = list(csv.DictReader((trained[0] / "metrics.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["miou"]))
    assert scores["miou"] == pytest.approx(float(best["miou"]), abs=2e-3)
    assert scores["loss"] == pytest.approx(float(best["val_loss"]), abs=1e-3)


def test_scores_are_those_of_the_masks_that_inference_writes(trained, roofs, call, tmp_path):
    best = trained[0] / "best_iou.pt"
    flags = ("--data-root", roofs, "--split", "all", "--amp", "off")
    scores = scores_of(call("evaluate", "--checkpoint", best, *flags))
    images = roofs / "images" / "images"
    assert call("infer", images, "--checkpoint", best, "--output-dir", tmp_path / "o", "--amp", "off").code == 0
    table = np.zeros((2, 2), np.int64)
    for path in images.iterdir():
        truth = tifffile.imread(roofs / "label" / "label" / f"{path.stem}_label.tif") > 0
        mask = np.asarray(Image.open(tmp_path / "o" / f"{path.stem}_mask.png"))
        np.add.at(table, (truth.astype(int), mask), 1)
    assert scores["confusion_matrix"] == table.tolist()
    assert scores["iou"] == pytest.approx(table[1, 1] / (table.sum() - table[0, 0]))


def test_a_threshold_moves_the_answer(trained, roofs, call):
    flags = ("--checkpoint", trained[0] / "best_iou.pt", "--data-root", roofs)
    low, high = (scores_of(call("evaluate", *flags, "--threshold", value)) for value in (0.01, 0.99))
    assert low["recall"] > high["recall"]
    card, _, _ = load_checkpoint(trained[0] / "best_iou.pt")
    assert scores_of(call("evaluate", *flags))["threshold"] == card.threshold


def test_several_checkpoints_and_flips(trained, roofs, call):
    best, last = trained[0] / "best_iou.pt", trained[0] / "last.pt"
    result = call("evaluate", "--checkpoint", best, last, "--data-root", roofs, "--tta")
    assert scores_of(result)["miou"] > 0.7


def test_evaluate_refuses_what_it_cannot_know(trained, roofs, scene, call):
    best = trained[0] / "best_iou.pt"
    call("evaluate", "--checkpoint", best, "--data-root", scene).mistake("--split all")
    call("evaluate", "--checkpoint", best).mistake("--data-root")
    call("evaluate", "--data-root", roofs).mistake("--checkpoint")
    assert scores_of(call("evaluate", "--checkpoint", best, "--data-root", scene, "--split", "all"))["n_images"] == 8


def test_bad_files_are_named_and_the_rest_scored(trained, roofs, call, tmp_path):
    for name in ("images", "label"):
        (tmp_path / name).mkdir()
    for i in range(3):
        image, label = f"town{i}_0.png", f"town{i}_0_label.tif"
        (tmp_path / "images" / image).write_bytes((roofs / "images" / "images" / image).read_bytes())
        (tmp_path / "label" / label).write_bytes((roofs / "label" / "label" / label).read_bytes())
    (tmp_path / "label" / "town0_0_label.tif").write_bytes(b"II*\0broken")
    (tmp_path / "label" / "town1_0_label.tif").unlink()
    result = call("evaluate", "--checkpoint", trained[0] / "best_iou.pt", "--data-root", tmp_path, "--split", "all")
    assert scores_of(result, code=1)["n_images"] == 1
    assert "town0_0_label.tif: cannot be read" in result.err
    assert "town1_0.png: has no label" in result.err
