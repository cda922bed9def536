"""Scores of a split against scikit-learn."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import sem

from common.metrics.split_scores import (
    FLAT,
    PARTS,
    SCORE_KEYS,
    SplitScores,
    check_root,
    print_scores,
    score_table,
    standard_error,
)
from common.networks.probabilities import class_probabilities, foreground_probability
from tests.peers import Peer

metrics = Peer("sklearn.metrics")

NAMES = ["ground", "thing"]


def binary_data():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (6, 12, 10), generator=generator)
    probability = (0.3 * target + torch.rand(6, 12, 10, generator=generator) * 0.5).clamp(0, 1)[:, None]
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return probability, target


def filled(scores, probability, target, parts=(2, 1, 3)):
    done = 0
    for n in parts:
        ids = [f"image{i}" for i in range(done, done + n)]
        scores.update(probability[done : done + n], target[done : done + n], float(n), ids)
        done += n
    return scores.result()


def check_against_sklearn(result, truth, guess, names):
    labels = list(range(len(names)))
    iou = metrics.jaccard_score(truth, guess, labels=labels, average=None, zero_division=0)
    present = sorted(set(truth))
    assert result["confusion_matrix"] == metrics.confusion_matrix(truth, guess, labels=labels).tolist()
    assert result["n_pixels"] == len(truth)
    assert result["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert result["kappa"] == pytest.approx(metrics.cohen_kappa_score(truth, guess))
    assert result["miou"] == pytest.approx(np.mean(iou[present]))
    assert list(result["per_class_iou"].values()) == pytest.approx(list(iou))
    average = {"average": "binary"} if len(names) == 2 else {"average": "macro", "labels": present}
    scorers = {"f1": metrics.f1_score, "precision": metrics.precision_score, "recall": metrics.recall_score}
    for key, scorer in scorers.items():
        assert result[key] == pytest.approx(scorer(truth, guess, zero_division=0, **average))
    assert result["absent_classes"] == [name for i, name in enumerate(names) if i not in present]


@pytest.mark.parametrize("threshold", [0.3, 0.42, 0.5])
def test_binary_at_a_threshold(threshold):
    probability, target = binary_data()
    result = filled(SplitScores(NAMES, threshold=threshold), probability, target)
    valid = target != 255
    truth, p = target[valid].numpy(), probability[:, 0][valid]
    check_against_sklearn(result, truth, (p >= threshold).long().numpy(), NAMES)
    assert result["iou"] == result["per_class_iou"]["thing"] and result["threshold"] == threshold
    assert result["auc"] == pytest.approx(metrics.roc_auc_score(truth, p.numpy()), abs=2e-3)
    assert result["n_images"] == 6 and result["loss"] == pytest.approx((2 * 2 + 1 + 3 * 3) / 6)
    assert tuple(result) == SCORE_KEYS and 0 < result["boundary_f1"] <= 1


@pytest.mark.parametrize("quick", [True, False])
def test_binary_at_the_best_threshold(quick):
    probability, target = binary_data()
    scores = SplitScores(NAMES, quick=quick)
    result = filled(scores, probability, target)
    valid = target != 255
    truth, p = target[valid].numpy(), probability[:, 0][valid]
    check_against_sklearn(result, truth, (p >= result["threshold"]).long().numpy(), NAMES)
    mious = [metrics.jaccard_score(truth, (p >= k / 1000).long().numpy(), average="macro") for k in range(100, 700, 7)]
    assert result["miou"] >= max(mious) - FLAT
    assert result["boundary_f1"] is None and not scores.per_image
    again = filled(SplitScores(NAMES, threshold=result["threshold"]), probability, target)
    assert {**again, "boundary_f1": None} == result


@pytest.mark.parametrize("absent", [False, True])
def test_several_classes(absent):
    names = ["a", "b", "c", "d"]
    generator = torch.Generator().manual_seed(1)
    probability = torch.rand(6, 4, 9, 9, generator=generator).softmax(1)
    target = torch.randint(0, 3 if absent else 4, (6, 9, 9), generator=generator)
    target[0, :4] = 255
    result = filled(SplitScores(names), probability, target)
    valid = target != 255
    check_against_sklearn(result, target[valid].numpy(), probability.argmax(1)[valid].numpy(), names)
    assert result["iou"] is None and result["auc"] is None and result["threshold"] is None
    assert 0 < result["boundary_f1"] < 1
    quick = SplitScores(names, quick=True)
    assert filled(quick, probability, target) == {**result, "boundary_f1": None} and not quick.per_image


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("quick", [True, False])
def test_the_score_without_a_part_of_the_images(threshold, quick):
    probability, target = binary_data()
    target[2] = 255  # tells nothing, so leaving it out neither
    scores = SplitScores(NAMES, threshold=threshold, quick=quick)
    chosen = filled(scores, probability, target, [1] * 6)["threshold"]
    expected = []
    for left_out in (0, 1, 3, 4, 5):
        rest = [i for i in range(6) if i != left_out]
        valid = target[rest] != 255
        guess = (probability[rest, 0] >= chosen).long()[valid]
        expected.append(metrics.jaccard_score(target[rest][valid], guess, average="macro"))
    assert scores.without_parts() == pytest.approx(expected)


def test_many_images_are_left_out_in_groups():
    generator = torch.Generator().manual_seed(2)
    probability = torch.rand(2 * PARTS + 3, 3, 5, 5, generator=generator)
    target = torch.randint(0, 3, (2 * PARTS + 3, 5, 5), generator=generator)
    scores = SplitScores(["a", "b", "c"], quick=True)
    filled(scores, probability, target, [1] * len(target))
    rest = [i for i in range(len(target)) if i % PARTS != 1]
    score = metrics.jaccard_score(target[rest].flatten(), probability.argmax(1)[rest].flatten(), average="macro")
    assert len(scores.without_parts()) == PARTS and scores.without_parts()[1] == pytest.approx(score)


def test_several_processes_leave_out_what_each_saw_as_its_nth_image():
    probability, target = binary_data()
    first, second = SplitScores(NAMES, quick=True), SplitScores(NAMES, quick=True)
    for scores, start in ((first, 0), (second, 1)):
        filled(scores, probability[start::2], target[start::2], [1] * 3)
    others = iter([second.confusion.counts, second.curve.counts, second.parts])
    first.join(lambda own: [own, list(zip(second.ids, second.losses, strict=True))], lambda own: own.add_(next(others)))
    valid = target[2:] != 255
    guess = (probability[2:, 0] >= first.result()["threshold"]).long()[valid]
    assert first.without_parts()[0] == pytest.approx(metrics.jaccard_score(target[2:][valid], guess, average="macro"))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    first, second = np.random.default_rng(0).normal(size=(2, 9))
    without = [(values.sum() - values) / 8 for values in (first, second)]
    assert standard_error(*without) == pytest.approx(sem(first - second))
    assert standard_error(without[0], without[0]) == 0
    assert standard_error([0.5], [0.4]) == standard_error([0.5, 0.4], [0.5]) == standard_error([], []) == 0


def test_single_images():
    probability, target = binary_data()
    target[3] = 255
    scores = SplitScores(NAMES, threshold=0.4)
    filled(scores, probability, target)
    assert [one.name for one in scores.per_image] == ["image0", "image1", "image2", "image4", "image5"]
    for name, value, _ in scores.per_image:
        i = int(name[-1])
        valid = target[i] != 255
        guess = (probability[i, 0] >= 0.4).long()[valid]
        assert value == pytest.approx(metrics.jaccard_score(target[i][valid], guess, average="macro"))


@pytest.mark.parametrize("names", [NAMES, ["a", "b", "c"]])
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("empty", ["nothing", "ignored", "one class", "no loss"])
def test_undefined_scores_are_null_and_never_nan(names, threshold, empty, capsys):
    scores = SplitScores(names, threshold=threshold)
    channels = 1 if len(names) == 2 else len(names)
    probability = torch.full((1, channels, 4, 4), 0.1)
    target = torch.full((1, 4, 4), 0 if empty in ("one class", "no loss") else 255)
    if empty != "nothing":
        scores.update(probability, target, math.nan if empty == "no loss" else 0.5, ["a"])
    print_scores("toy", "test", scores.result())
    line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert list(result) == ["task", "split", *SCORE_KEYS]
    if empty in ("nothing", "ignored"):
        assert result["miou"] is None and result["pixel_accuracy"] is None and result["n_pixels"] == 0
        assert result["absent_classes"] == names
    else:
        assert result["miou"] == 1.0 and result["absent_classes"] == names[1:]
    assert (result["loss"] is None) == (empty in ("nothing", "no loss"))
    assert result["auc"] is None


def test_probabilities():
    logits = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(foreground_probability(logits[:, :1]), 1 / (1 + torch.exp(-logits[:, :1])))
    pair = logits[:, :2].exp()
    torch.testing.assert_close(foreground_probability(logits[:, :2]), pair[:, 1:] / pair.sum(1, keepdim=True))
    torch.testing.assert_close(class_probabilities(logits), logits.exp() / logits.exp().sum(1, keepdim=True))


def test_another_root_needs_split_all():
    check_root("/a", "/a", "test")
    check_root("/b", "/a", "all")
    with pytest.raises(ValueError, match=r"--data-root /b is not the root of the training \(/a\).*--split all"):
        check_root("/b", "/a", "test")


def test_the_table_for_people():
    scores = {
        "n_images": 3,
        "n_pixels": 2_500_000,
        "iou": 0.5,
        "miou": 0.75,
        "auc": None,
        "per_class_iou": {"roof": 0.5},
    }
    lines = score_table("test", scores).splitlines()
    assert lines[0] == "test: 3 image(s), 2.50 million valid pixels"
    assert [line.split() for line in lines[1:]] == [
        ["mean", "IoU", "0.7500"], ["foreground", "IoU", "0.5000"], ["ROC", "area", "n/a"],
        ["IoU", "of", "roof", "0.5000"],
    ]  # fmt: skip


def test_nuclei_are_judged_by_the_field_of_interest_first():
    scores = {"n_images": 1, "n_pixels": 1, "iou": 0.7, "miou": 0.8, "iou_foi": 0.97, "seg": 0.8, "det": 0.99}
    lines = score_table("test", {**scores, "per_class_iou": {}}).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["0.9700", "0.8000", "0.9900"]
    assert "unannotated nuclei" in lines[-1]


def test_the_table_goes_to_stderr_and_the_json_stays_the_last_line_of_stdout(capsys):
    print_scores("rooftops", "test", {"n_images": 1, "n_pixels": 1, "miou": None, "per_class_iou": {}})
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["task"] == "rooftops" and len(out.splitlines()) == 1
    assert "mean IoU" in err and "n/a" in err
