"""The pictures and the report that a training ends with, and those before it and during it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.command.config import TrainConfig
from common.data.labeled import LabeledImage, Sample
from common.metrics.split_scores import SplitScores
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.report.examples import panels
from common.training.experiment import Engine, Experiment
from common.training.finish import Outcome, finish_run, versions
from common.training.pictures import draw_epoch, preview, spread, thicken
from common.training.predicted import Predicted
from common.training.runs import RunFolder

CLASSES, PALETTE = ["ground", "house"], {0: (200, 200, 200), 1: (170, 30, 30)}
CARD = ModelCard("towns", "net", {}, CLASSES, PALETTE, split={"test": []}, data_root="/data/towns")
HISTORY = [
    {"epoch": i, "lr": 6e-5 / i, "train_loss": 1 / i, "val_loss": 1.2 / i, "pixel_accuracy": 0.8, "miou": 0.5 + i / 20,
     "f1": 0.6, "iou_ground": 0.9, "iou_house": i / 10, "threshold": 0.5, "seconds": 90.0}
    for i in range(1, 6)
]  # fmt: skip


class Squares:
    """Samples with a square each; index 0 is empty ground."""

    def __init__(self, count=8, side=96):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        index = key if isinstance(key, int) else key[0]
        target = torch.zeros(self.side, self.side, dtype=torch.int64)
        if index:
            target[20 : 30 + 6 * index, 20:60] = 1
        target[:6] = 255
        return {"image": torch.randn(3, self.side, self.side) * 0.2 + target.clamp(max=1), "target": target,
                "id": f"town_{index}"}  # fmt: skip


@pytest.fixture
def outcome():
    torch.manual_seed(0)
    scores, predicted, test = (
        SplitScores(CLASSES, threshold=0.5),
        Predicted(lambda p: (p[0] >= 0.5).astype(np.uint8)),
        [],
    )
    for sample in (Squares()[i] for i in range(8)):
        wrong = torch.rand(sample["target"].shape) < 0.02 * int(sample["id"][-1])
        guess = ((sample["target"] == 1) ^ wrong).float()[None]
        scores.update(guess[None], sample["target"][None], 0.1, [sample["id"]])
        image, truth = (sample["image"].numpy().clip(0, 1) * 255).astype(np.uint8), sample["target"].numpy()
        test.append(LabeledImage(sample["id"], image, truth.astype(np.uint8)))
        predicted.add(sample["id"], guess.numpy(), test[-1].classes)
    forgotten = LabeledImage("old_7", test[7].image, np.where(test[7].classes == 1, 0, test[7].classes))
    samples = {"train": [Sample("old_7", "town", lambda: forgotten)], "test": list(map(Sample.held, test))}
    wide = np.ones((15, 15)) / 225
    return Outcome(
        "test", CARD, scores.result(), scores, predicted, samples,
        lambda image: cv2.filter2D((image.mean(0) > 0.5).astype(np.float32), -1, wide)[None],
    )  # fmt: skip


def size(path):
    with Image.open(path) as picture:
        return picture.size


def finish(path, outcome):
    run = RunFolder(path)
    path.mkdir()
    precision = choose_precision("cpu", "off")
    with run.writing():
        finish_run(run, TrainConfig(), [("pairs", "8")], HISTORY, precision, outcome)
    return (path / "report.html").read_text(encoding="utf-8")


def test_the_report_says_when_where_and_on_what(tmp_path, outcome, capsys):
    page = finish(tmp_path / "run", outcome)
    assert "\n  mean IoU " in capsys.readouterr().err
    for text in ("/data/towns", "7.5 min of optimization in 5 epochs", "cpu, fp32", versions(), "test part, 8 images"):
        assert text in page
    assert versions().startswith("plain-segmentation 0.1.0, Python 3.") and torch.__version__ in versions()


def test_examples_are_informative_named_and_explained(tmp_path, outcome):
    page = finish(tmp_path / "run", outcome)
    for group in ("ordinary", "best", "worst"):
        assert f"<h3>{group}</h3>" in page
    assert "town_1" in page and "town_0" not in page, "empty ground says nothing"
    for text in ("unseen in training", "input, truth, prediction, errors", "hit", "missed", "hatched"):
        assert text in page
    assert size(tmp_path / "run" / "predictions.png")[0] > 1200
    page = finish(tmp_path / "val", replace(outcome, part="val"))
    assert "epoch and threshold were chosen with it" in page and not (tmp_path / "val" / "test_metrics.json").exists()


def test_suspected_label_errors_are_listed_and_shown(tmp_path, outcome):
    page = finish(tmp_path / "run", outcome)
    assert "<h3>suspected label errors</h3>" in page and "old_7 (train): ground, or house?" in page
    listed = (tmp_path / "run" / "suspects.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("town,train,0.")


def test_every_sample_is_predicted_once(tmp_path, outcome):
    predicted = []
    once = replace(outcome, predict=lambda image: predicted.append(image) or outcome.predict(image))
    finish(tmp_path / "run", once)
    assert len(predicted) == 1, "scored samples are not predicted again, neither for pictures nor for suspects"


def test_pictures_are_there_when_the_search_for_label_errors_is_stopped(tmp_path, outcome):
    def stop(image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "run", replace(outcome, predict=stop))
    assert {"curves.png", "predictions.png", "test_metrics.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_the_prediction_that_was_scored_is_drawn(outcome, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(
        "common.training.finish.panels",
        lambda image, maps, palette: drawn.setdefault(len(drawn), maps) and panels(image, maps, palette),
    )
    finish(tmp_path / "run", outcome)
    hits = sorted(float((maps["truth"] == maps["prediction"])[6:].mean()) for maps in drawn.values())
    assert hits[-1] > 0.97 and 0.84 < hits[1] < 0.9, "one pixel in fifty wrong for each number of a town"


def test_images_are_counted_not_tiles(tmp_path, outcome):
    tiles = [Sample(one.id, one.id.replace("1", "2"), one.read) for one in outcome.samples["test"]]
    finish(tmp_path / "run", replace(outcome, samples={"test": tiles}))
    assert json.loads((tmp_path / "run" / "test_metrics.json").read_text())["n_images"] == 7


def test_what_there_was_no_time_for_is_said(tmp_path, outcome, capsys, monkeypatch):
    outcome.detail.left_out = 5
    page = finish(tmp_path / "run", outcome)
    said = "8 images or tiles of the test part, 5 left out: --max-minutes was used up; evaluate.py scores all"
    assert said in capsys.readouterr().err and "test part, 8 images, 5 left out" in page
    assert json.loads((tmp_path / "run" / "test_metrics.json").read_text())["left_out"] == 5
    assert "were looked for" not in said and outcome.predicted.suspicions["old_7"] is not None
    outcome.detail.left_out = 0
    monkeypatch.setattr("common.training.finish.end_of", lambda config: -1e9)
    del outcome.predicted.suspicions["old_7"]
    finish(tmp_path / "late", outcome)
    assert "looked for in 8 of 9" in capsys.readouterr().err and (tmp_path / "late" / "predictions.png").exists()
    assert "left_out" not in json.loads((tmp_path / "late" / "test_metrics.json").read_text())


def test_labeled_points_are_a_panel_of_their_own(tmp_path, outcome):
    points = np.full((96, 96), 255, np.uint8)
    with_points = replace(outcome, points=lambda pair: points)
    assert "input, points, truth, prediction, errors" in finish(tmp_path / "run", with_points)


@pytest.fixture
def experiment():
    return Experiment(nn.Conv2d(3, 1, 1), CARD, Squares(), Squares(5), 0, lambda logits, batch, state: logits.mean())


def test_a_preview_shows_samples_and_stops(experiment, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    assert preview(experiment, run, seed=0) == 0
    assert [path.name for path in run.path.iterdir()] == ["preview.png"]
    assert size(run.path / "preview.png")[1] > 2000, "four training and four validation samples"
    assert "nothing was trained" in capsys.readouterr().err


def test_predictions_of_the_same_samples_after_every_epoch(experiment, tmp_path):
    pictures = []
    writer = SimpleNamespace(add_image=lambda tag, picture, epoch, dataformats: pictures.append((tag, picture, epoch)))
    run, model = SimpleNamespace(writer=writer), experiment.model
    engine = Engine.of(experiment, choose_precision("cpu", "off"))
    nn.init.zeros_(model.weight)
    for epoch, bias in ((1, 9.0), (2, -9.0)):
        nn.init.constant_(model.bias, bias)
        draw_epoch(SimpleNamespace(inference_model=model, threshold=0.5, epoch=epoch), experiment, engine, run)
    tags, drawn, epochs = zip(*pictures, strict=True)
    assert epochs == (1, 1, 1, 2, 2, 2) and tags[:3] == tags[3:] and "town_4" in tags[2]
    assert all(picture.shape == (96, 4 * 96 + 12, 3) for picture in drawn)
    prediction = np.s_[50, 2 * 100 + 40]
    assert tuple(drawn[2][prediction]) == PALETTE[1] and tuple(drawn[5][prediction]) == PALETTE[0]


def test_samples_from_first_to_last():
    assert spread(10, 4) == [0, 3, 6, 9] and spread(2, 4) == [0, 1] and spread(1, 3) == [0]


def test_points_are_drawn_large_enough_to_be_seen():
    classes = np.full((60, 60), 255, np.uint8)
    classes[10, 10] = 3
    assert (thicken(classes) == 3).sum() == 9
    full = np.zeros((4, 4), np.uint8)
    assert (thicken(full) == full).all()
