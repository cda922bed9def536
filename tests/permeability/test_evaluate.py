import json
import shutil

import numpy as np
import pytest
import rasterio

from common.inference.predictor import Predictor
from common.networks.checkpoint import load_checkpoint
from common.networks.precision import choose_precision
from permeability.task import TASK
from tests.peers import Peer

jaccard_score = Peer("sklearn.metrics:jaccard_score")


def scores_of(result):
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def test_scores_are_those_of_one_confusion_matrix(trained, easy, call):
    checkpoint = trained[0] / "best_iou.pt"
    scores = scores_of(call("evaluate", "--checkpoint", checkpoint, "--data-root", easy, "--split", "test"))
    predictor = Predictor.load(TASK, [checkpoint], choose_precision("cpu", "auto"))
    with rasterio.open(easy / "INSUMOS/ORTOFOTOS/sheet4.tif") as photo:
        image = photo.read().astype(np.float32) / 255
    with rasterio.open(easy / "DATA/OUTPUT/MASCARAS/test/suelo4.tif") as mask:
        truth = mask.read(1)
    guess = predictor.classify(predictor(image))
    expected = jaccard_score(truth.ravel(), guess.ravel(), average=None)
    assert list(scores["per_class_iou"].values()) == pytest.approx(expected.tolist(), abs=2e-3)
    assert scores["iou"] == scores["per_class_iou"]["Permeable"] and scores["n_pixels"] == truth.size
    assert scores["miou"] == pytest.approx(json.loads((trained[0] / "test_metrics.json").read_text())["miou"])
    assert 0 < scores["loss"] < 1 and scores["threshold"] == load_checkpoint(checkpoint)[0].threshold


def test_another_root_needs_all(trained, easy, call, tmp_path):
    shutil.copytree(easy, tmp_path / "copy")
    flags = ("--checkpoint", trained[0] / "best_iou.pt", "--data-root", tmp_path / "copy")
    call("evaluate", *flags).mistake("--split all")
    assert scores_of(call("evaluate", *flags, "--split", "all"))["n_images"] == 5


def test_two_folders(trained, easy, call):
    folders = ("--images", easy / "INSUMOS/ORTOFOTOS", "--labels", easy / "DATA/OUTPUT/MASCARAS/val")
    flags = ("--checkpoint", trained[0] / "best_iou.pt", *folders, "--split", "all")
    assert scores_of(call("evaluate", *flags))["n_images"] == 1
