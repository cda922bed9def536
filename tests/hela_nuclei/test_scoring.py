import json

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F

from common.losses import LossRecipe, build_loss
from hela_nuclei.predict import Prediction
from hela_nuclei.scoring import NucleiScores, build_criterion
from hela_nuclei.separate import distance_map
from tests.peers import Peer

peer_det = Peer("ctc_metrics.metrics.technical.det:det")
peer_seg = Peer("ctc_metrics.metrics.technical.seg:seg")
count_acyclic_graph_correction_operations = Peer(
    "ctc_metrics.utils.representations:count_acyclic_graph_correction_operations"
)
peer_match = Peer("ctc_metrics.utils.representations:match")
sklearn = Peer("sklearn.metrics")

BORDER = 6


def nuclei(rng, shape, count):
    labels = np.zeros(shape, np.int32)
    rows, columns = np.indices(shape)
    for label in rng.choice(np.arange(1, 900), count, replace=False):
        row, column = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        labels[((rows - row) ** 2 + (columns - column) ** 2 <= rng.integers(9, 50)) & (labels == 0)] = label
    return labels


def predicted(rng, labels):
    noise = np.clip(0.75 * (np.roll(labels, 1, 1) > 0) + rng.random(labels.shape) * 0.4, 0, 1)
    return Prediction(noise.astype(np.float32), rng.random(labels.shape, np.float32), 0.5, min_area=12)


def inside(labels):
    """The objects that reach into the field of interest."""
    kept = [i for i in np.unique(labels) if i and (labels[BORDER:-BORDER, BORDER:-BORDER] == i).any()]
    return np.where(np.isin(labels, kept), labels, 0)


def test_scores_equal_an_independent_count(tmp_path):
    rng = np.random.default_rng(1)
    frames = [(name, nuclei(rng, (50 + i, 70), 12)) for i, name in enumerate(("01", "01", "02"))]
    frames = [(name, labels, predicted(rng, labels)) for name, labels in frames]
    scores = NucleiScores(0.5, BORDER)
    for index, (name, labels, prediction) in enumerate(frames):
        scores.update(name, f"{name}/t{index}", labels, prediction)
    result = scores.result()

    truth = np.concatenate([(labels > 0).ravel() for _, labels, _ in frames])
    guess = np.concatenate([prediction.mask.ravel() for *_, prediction in frames])
    probability = np.concatenate([prediction.probability.ravel() for *_, prediction in frames])
    core = slice(BORDER, -BORDER)
    foi = [np.concatenate([m[core, core].ravel() for m in maps]) for maps in
           ([labels > 0 for _, labels, _ in frames], [prediction.mask for *_, prediction in frames])]  # fmt: skip
    assert result["iou"] == pytest.approx(sklearn.jaccard_score(truth, guess))
    assert result["miou"] == pytest.approx(sklearn.jaccard_score(truth, guess, average="macro"))
    assert result["f1"] == pytest.approx(sklearn.f1_score(truth, guess))
    assert result["kappa"] == pytest.approx(sklearn.cohen_kappa_score(truth, guess))
    assert result["auc"] == pytest.approx(sklearn.roc_auc_score(truth, probability), abs=1e-3)
    assert result["iou_foi"] == pytest.approx(sklearn.jaccard_score(*foi))
    each = [sklearn.jaccard_score((labels > 0).ravel(), prediction.mask.ravel()) for _, labels, prediction in frames]
    assert result["iou_mean_per_image"] == pytest.approx(np.mean(each))
    assert result["n_pixels"] == truth.size
    for name, wanted in (("01", frames[:2]), ("02", frames[2:]), (None, frames)):
        got = result if name is None else result["per_sequence"][name]
        pairs = [(inside(labels), inside(prediction.nuclei())) for _, labels, prediction in wanted]
        seg, det = peer_scores(pairs, tmp_path)
        assert (got["seg"], got["det"]) == (pytest.approx(seg, abs=1e-12), pytest.approx(det, abs=1e-12))
    assert {name: part["n_frames"] for name, part in result["per_sequence"].items()} == {"01": 2, "02": 1}
    json.dumps(result, allow_nan=False)


def peer_scores(pairs, folder):
    """SEG and DET of py-ctcmetrics, whose match reads files."""
    matches = []
    for pair in pairs:
        for name, labels in zip("ab", pair, strict=True):
            tifffile.imwrite(folder / f"{name}.tif", labels.astype(np.int64), photometric="minisblack")
        matches.append(peer_match(str(folder / "a.tif"), str(folder / "b.tif")))
    *labels_and_maps, ious = (list(part) for part in zip(*matches, strict=True))
    counts = count_acyclic_graph_correction_operations(None, None, *labels_and_maps)
    return peer_seg(labels_and_maps[0], ious), peer_det(**counts)


@pytest.mark.parametrize("border", [0, 5, 100])
def test_nothing_to_score_is_null_and_border_zero_counts_everything(border):
    scores = NucleiScores(0.5, border)
    result = scores.result()
    names = ("iou", "iou_foi", "iou_mean_per_image", "seg", "det", "miou", "loss", "auc")
    assert [result[name] for name in names] == [None] * len(names)
    assert result["per_sequence"] == {}
    json.dumps(result, allow_nan=False)

    labels = np.zeros((40, 40), np.int32)
    labels[:8, :8] = 3
    perfect = Prediction((labels > 0).astype(np.float32), None, 0.5)
    scores.update("01", "01/t000", labels, perfect)
    result = scores.result()
    assert result["iou"] == 1
    assert result["seg"] == (1 if border < 8 else None)
    assert result["iou_foi"] == (1 if border < 8 else None)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("outputs", [1, 2])
def test_loss_is_that_of_the_training(outputs):
    rng = np.random.default_rng(0)
    labels = nuclei(rng, (40, 48), 9)
    logits = torch.from_numpy(rng.normal(size=(1, outputs, 40, 48))).float()
    batch = {
        "target": torch.from_numpy((labels > 0).astype(np.int64))[None],
        "distance": torch.from_numpy(distance_map(labels))[None],
    }
    expected = build_loss("bce+dice")(logits[:, :1], batch["target"])
    if outputs == 2:
        expected = expected + F.binary_cross_entropy_with_logits(logits[0, 1], batch["distance"][0])
    assert float(build_criterion(LossRecipe("bce+dice"))(logits, batch)) == pytest.approx(float(expected))
