"""Streaming metrics against scikit-learn, torchmetrics and brute force; how pixels are dealt must not matter."""

from __future__ import annotations

import json
import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.labels import IGNORE
from common.metrics import counts as metrics
from common.metrics.counts import BoundaryF1, ConfusionMatrix, ThresholdCurve
from tests.peers import Peer

peers = Peer("torchmetrics.functional.classification")
sklearn = Peer("sklearn.metrics")

SCORES = ("n_pixels", "iou", "miou", "pixel_accuracy", "f1", "precision", "recall", "kappa", "per_class_iou")
NAMES = {2: ["ground", "roof"], 3: list("abc"), 5: list("abcde")}
examples = settings(deadline=None, max_examples=80)


def random_maps(num_classes: int, shape: tuple[int, ...] = (2, 20, 30), seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction that is right more often than not, and a target with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, num_classes, shape, generator=generator)
    other = torch.randint(0, num_classes, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.6, target, other)
    target[torch.rand(shape, generator=generator) < 0.2] = IGNORE
    return prediction, target


def confusion(prediction: Tensor, target: Tensor, num_classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, target)
    return matrix


def curve(probability: Tensor, target: Tensor, bins: int = 1000) -> ThresholdCurve:
    result = ThresholdCurve(bins)
    result.update(probability, target)
    return result


def boundary(prediction: Tensor, target: Tensor, num_classes: int = 2, tolerance: float = 2) -> BoundaryF1:
    result = BoundaryF1(num_classes, tolerance)
    result.update(prediction, target)
    return result


class TestConfusionMatrix:
    @pytest.mark.parametrize("num_classes", [2, 5])
    def test_equals_scikit_learn(self, num_classes):
        prediction, target = random_maps(num_classes)
        valid = target != IGNORE
        truth, guess = target[valid].numpy(), prediction[valid].numpy()
        scores = confusion(prediction, target, num_classes).scores(NAMES[num_classes])
        average = "binary" if num_classes == 2 else "macro"
        assert scores["confusion_matrix"] == sklearn.confusion_matrix(truth, guess).tolist()
        assert scores["n_pixels"] == len(truth)
        assert scores["miou"] == pytest.approx(sklearn.jaccard_score(truth, guess, average="macro"))
        assert scores["pixel_accuracy"] == pytest.approx(sklearn.accuracy_score(truth, guess))
        assert scores["f1"] == pytest.approx(sklearn.f1_score(truth, guess, average=average))
        assert scores["precision"] == pytest.approx(sklearn.precision_score(truth, guess, average=average))
        assert scores["recall"] == pytest.approx(sklearn.recall_score(truth, guess, average=average))
        assert scores["kappa"] == pytest.approx(sklearn.cohen_kappa_score(truth, guess))
        per_class = sklearn.jaccard_score(truth, guess, average=None)
        assert list(scores["per_class_iou"]) == NAMES[num_classes]
        assert list(scores["per_class_iou"].values()) == pytest.approx(per_class.tolist())
        assert scores["iou"] == (pytest.approx(per_class[1]) if num_classes == 2 else None)
        assert scores["absent_classes"] == []

    @pytest.mark.parametrize("num_classes", [3, 5])
    def test_equals_torchmetrics(self, num_classes):
        prediction, target = random_maps(num_classes, seed=1)
        scores = confusion(prediction, target, num_classes).scores(NAMES[num_classes])
        options = {"num_classes": num_classes, "ignore_index": IGNORE}
        matrix = peers.multiclass_confusion_matrix(prediction, target, **options)
        assert scores["confusion_matrix"] == matrix.tolist()
        for key, function in [
            ("miou", peers.multiclass_jaccard_index),
            ("f1", peers.multiclass_f1_score),
            ("precision", peers.multiclass_precision),
            ("recall", peers.multiclass_recall),
            ("kappa", peers.multiclass_cohen_kappa),
        ]:
            assert scores[key] == pytest.approx(function(prediction, target, **options).item(), rel=1e-5), key

    def test_rows_are_the_truth(self):
        matrix = confusion(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]), 2)
        assert matrix.counts.tolist() == [[0, 2], [1, 0]]
        assert matrix.counts.dtype == torch.int64

    def test_perfect(self):
        scores = confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 2).scores(NAMES[2])
        assert all(
            scores[key] == 1.0 for key in ("iou", "miou", "pixel_accuracy", "f1", "precision", "recall", "kappa")
        )

    @pytest.mark.parametrize("num_classes", [2, 3])
    def test_nothing_counted_is_none_throughout(self, num_classes):
        prediction = torch.zeros(1, 4, 4, dtype=torch.long)
        scores = confusion(prediction, torch.full_like(prediction, IGNORE), num_classes).scores(NAMES[num_classes])
        assert scores.pop("n_pixels") == 0
        assert scores.pop("absent_classes") == NAMES[num_classes]
        assert scores.pop("per_class_iou") == dict.fromkeys(NAMES[num_classes])
        assert not any(map(any, scores.pop("confusion_matrix")))
        assert set(scores.values()) == {None}

    def test_every_pixel_wrong_with_absent_classes_is_zero(self):
        target = torch.arange(2).repeat(8)
        scores = confusion(1 - target, target, 5).scores(NAMES[5])
        assert scores["miou"] == 0.0
        assert scores["absent_classes"] == ["c", "d", "e"]
        assert scores["per_class_iou"] == {"a": 0.0, "b": 0.0, "c": None, "d": None, "e": None}

    def test_absent_classes_do_not_enter_means(self):
        target, prediction = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])
        scores = confusion(prediction, target, 3).scores(NAMES[3])
        assert scores["miou"] == pytest.approx((1 / 2 + 1) / 2)
        assert scores["recall"] == pytest.approx((1 / 2 + 1) / 2)
        assert scores["precision"] == 1.0
        assert scores["per_class_iou"]["c"] == 0.0  # predicted wrongly: defined, though not in the mean

    def test_a_class_never_predicted(self):
        target, prediction = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 2, 2])
        assert confusion(prediction, target, 3).scores(NAMES[3])["precision"] == pytest.approx((0.5 + 0 + 1) / 3)
        binary = confusion(torch.tensor([0, 0]), torch.tensor([0, 1]), 2).scores(NAMES[2])
        assert (binary["precision"], binary["recall"], binary["f1"], binary["iou"]) == (None, 0.0, 0.0, 0.0)

    def test_one_class_only_has_no_kappa_and_no_foreground(self):
        scores = confusion(torch.zeros(4).long(), torch.zeros(4).long(), 2).scores(NAMES[2])
        assert scores["kappa"] is None
        assert scores["iou"] is None
        assert scores["miou"] == 1.0
        assert scores["absent_classes"] == ["roof"]

    def test_values_are_plain_and_strict_json(self):
        scores = confusion(*random_maps(3), 3).scores(NAMES[3])
        assert json.loads(json.dumps(scores, allow_nan=False)) == scores
        assert set(SCORES) | {"absent_classes", "confusion_matrix"} == set(scores)

    def test_counts_beyond_32_bits(self):
        matrix = ConfusionMatrix(2)
        matrix.counts += torch.tensor([[6 * 10**9, 10**9], [10**9, 4 * 10**9]])
        scores = matrix.scores(NAMES[2])
        assert scores["kappa"] == pytest.approx((10 / 12 - 74 / 144) / (1 - 74 / 144))
        assert scores["n_pixels"] == 12 * 10**9

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
    def test_dtypes_agree(self, dtype):
        prediction, target = random_maps(2)
        narrow = target if dtype == torch.bool else target.to(torch.uint8).to(dtype)
        assert confusion(prediction.to(dtype), narrow, 2).counts.equal(confusion(prediction, target, 2).counts)

    def test_bytes_do_not_overflow(self):
        label = torch.full((3,), 200, dtype=torch.uint8)
        assert confusion(label, label, 250).counts[200, 200] == 3

    def test_nodata_in_the_prediction_is_left_out(self):
        assert confusion(torch.tensor([0, IGNORE]), torch.tensor([0, 1]), 2).counts.tolist() == [[1, 0], [0, 0]]

    @pytest.mark.parametrize("label", [-1, 2, 128, 254, 256])
    def test_unknown_labels_are_refused_by_name(self, label):
        good, bad = torch.tensor([0, 1]), torch.tensor([0, label])
        with pytest.raises(ValueError, match=f"target holds label {label};"):
            ConfusionMatrix(2).update(good, bad)
        with pytest.raises(ValueError, match=f"prediction holds label {label};"):
            ConfusionMatrix(2).update(bad, good)

    def test_other_mistakes_are_refused(self):
        matrix = ConfusionMatrix(2)
        with pytest.raises(ValueError, match=r"\(2, 3\) and target \(3, 2\) differ"):
            matrix.update(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())
        with pytest.raises(ValueError, match=r"prediction holds torch\.float32"):
            matrix.update(torch.tensor([0.7]), torch.tensor([1]))
        with pytest.raises(ValueError, match=r"target holds torch\.float32"):
            matrix.update(torch.tensor([1]), torch.tensor([0.7]))
        with pytest.raises(ValueError, match="1 classes"):
            ConfusionMatrix(1)
        with pytest.raises(ValueError, match="2 different class names expected"):
            matrix.scores(["a", "b", "c"])
        with pytest.raises(ValueError, match="2 different class names expected"):
            matrix.scores(["a", "a"])


class TestThresholdCurve:
    @examples
    @given(
        cells=arrays.arrays(np.int64, st.integers(2, 60), elements=st.integers(0, 20)),
        seed=st.integers(0, 99),
    )
    def test_equals_scikit_learn_on_the_bins(self, cells, seed):
        truth = np.random.default_rng(seed).integers(0, 2, len(cells))
        truth[:2] = 0, 1
        result = curve(torch.from_numpy(cells / 20), torch.from_numpy(truth), bins=20)
        assert result.roc_auc() == pytest.approx(sklearn.roc_auc_score(truth, cells))
        false, true, _ = sklearn.roc_curve(truth, cells, drop_intermediate=False)
        assert set(zip(*np.round([false, true], 9), strict=True)) == set(zip(*np.round(result.roc(), 9), strict=True))

    @pytest.mark.parametrize("bins", [100, 1000])
    def test_within_a_bin_of_scikit_learn_otherwise(self, bins):
        generator = torch.Generator().manual_seed(0)
        target = torch.randint(0, 2, (4, 50, 50), generator=generator)
        probability = (torch.randn(4, 50, 50, generator=generator) + 2 * target - 1).sigmoid()
        target[0] = IGNORE
        truth, chance = target[1:].flatten().numpy(), probability[1:].flatten().numpy()
        result = curve(probability, target, bins)
        assert result.roc_auc() == pytest.approx(sklearn.roc_auc_score(truth, chance), abs=1 / bins)

    @pytest.mark.parametrize("bins", [10, 22, 74, 998, 1000, 100_002])  # 22 and 74 round products down, 998 up
    def test_masks_at_every_edge_are_exact(self, bins):
        edges = (torch.arange(bins + 1, dtype=torch.float64) / bins).float()
        around = [edges, edges.nextafter(torch.tensor(0.0)), edges.nextafter(torch.tensor(1.0))]
        probability = torch.cat([*around, torch.rand(500)])
        target = torch.randint(0, 2, probability.shape)
        result = curve(probability, target, bins)
        for cell in {0, 1, 3, 7, bins // 3, bins // 2, bins - 3, bins - 1, bins, *range(0, bins, -(-bins // 80))}:
            mask = probability >= cell / bins
            assert result.confusion_at(cell / bins).counts.equal(confusion(mask, target, 2).counts), cell

    @pytest.mark.parametrize("seed", range(5))
    def test_best_threshold_is_the_best_of_all(self, seed):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(0, 2, (300,), generator=generator)
        probability = (torch.rand(300, generator=generator) * 0.6 + 0.2 * target).clamp(0, 1)
        target[:30] = IGNORE
        best = curve(probability, target, bins=50).best_threshold()
        scores = [confusion(probability >= k / 50, target, 2).scores(NAMES[2])["miou"] for k in range(51)]
        assert scores[round(best * 50)] == max(scores)
        ties = [k / 50 for k in range(51) if scores[k] == max(scores)]
        assert abs(best - 0.5) == min(abs(tie - 0.5) for tie in ties)

    def test_ties_go_to_the_middle(self):
        target = torch.tensor([0, 1])
        assert curve(torch.tensor([0.1, 0.9]), target).best_threshold() == 0.5
        assert curve(torch.tensor([0.7, 0.9]), target, 10).best_threshold() == 0.8
        assert curve(torch.tensor([0.1, 0.25]), target, 100).best_threshold() == 0.25

    def test_one_class_only(self):
        chance = torch.tensor([0.2, 0.7])
        background, foreground = curve(chance, torch.tensor([0, 0])), curve(chance, torch.tensor([1, 1]))
        assert (background.roc_auc(), background.roc()) == (None, None)
        assert (foreground.roc_auc(), foreground.roc()) == (None, None)
        assert background.best_threshold() == 0.701  # the first edge above every background pixel
        assert foreground.best_threshold() == 0.2

    def test_nothing_counted(self):
        empty = curve(torch.tensor([math.nan]), torch.tensor([IGNORE]))
        assert (empty.roc_auc(), empty.roc(), empty.best_threshold()) == (None, None, 0.5)
        assert empty.confusion_at(0.5).scores(NAMES[2])["miou"] is None
        assert {row["mean_predicted"] for row in empty.calibration()} == {None}

    def test_roc_runs_from_corner_to_corner(self):
        result = curve(torch.rand(100), torch.arange(100) % 2)
        false, true = result.roc()
        assert (false[0], true[0], false[-1], true[-1]) == (0.0, 0.0, 1.0, 1.0)
        assert false == sorted(false)
        assert true == sorted(true)
        assert np.trapezoid(true, false) == pytest.approx(result.roc_auc())

    def test_calibration_table(self):
        generator = torch.Generator().manual_seed(0)
        probability = torch.rand(5000, generator=generator)
        probability[:20] = 1.0
        target = (torch.rand(5000, generator=generator) < probability**2).long()
        table = curve(probability, target).calibration(5)
        assert [row["lower"] for row in table] == [0, 0.2, 0.4, 0.6, 0.8]
        assert table[-1]["upper"] == 1
        assert sum(row["count"] for row in table) == 5000
        for row in table:
            inside = (probability >= row["lower"]) & ((probability < row["upper"]) | (row["upper"] == 1))
            assert row["count"] == inside.sum()
            assert row["mean_predicted"] == pytest.approx(probability[inside].mean().item(), abs=1e-3)
            assert row["observed"] == pytest.approx(target[inside].double().mean().item())

    def test_calibration_of_empty_rows_and_strict_json(self):
        table = curve(torch.tensor([0.05, 0.05, 1.0]), torch.tensor([0, 1, 1])).calibration()
        assert table[0] == {"lower": 0.0, "upper": 0.1, "count": 2, "mean_predicted": 0.0505, "observed": 0.5}
        assert table[4] == {"lower": 0.4, "upper": 0.5, "count": 0, "mean_predicted": None, "observed": None}
        assert table[9]["mean_predicted"] == 1.0
        json.dumps(table, allow_nan=False)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype):
        probability = (torch.arange(9) / 8).to(dtype)
        target = torch.tensor([0, 1, 0, 1, 1, 0, 1, 1, IGNORE])
        assert torch.equal(curve(probability, target).counts, curve(probability.float(), target.byte()).counts)

    @pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
    def test_what_is_no_probability_is_refused(self, value):
        with pytest.raises(ValueError, match=r"not within \[0, 1\]"):
            curve(torch.tensor([0.5, value]), torch.tensor([0, 1]))

    def test_other_mistakes_are_refused(self):
        result = ThresholdCurve(10)
        with pytest.raises(ValueError, match="target holds label 2;"):
            result.update(torch.tensor([0.5]), torch.tensor([2]))
        with pytest.raises(ValueError, match="differ in shape"):
            result.update(torch.rand(2, 1, 3, 3), torch.zeros(2, 3, 3).long())
        with pytest.raises(ValueError, match="not a multiple of 1/10"):
            result.confusion_at(0.25)
        with pytest.raises(ValueError, match="not a multiple of 1/10"):
            result.confusion_at(1.1)
        with pytest.raises(ValueError, match="3 rows"):
            result.calibration(3)
        with pytest.raises(ValueError, match="7 bins"):
            ThresholdCurve(7)


def brute_boundary(labels: np.ndarray, valid: np.ndarray, label: int) -> list[tuple[int, int]]:
    """Boundary pixels of a class, from the definition, pixel by pixel."""
    found = []
    for row, col in np.argwhere(valid & (labels == label)):
        for down, right in [(0, 1), (1, 0), (0, -1), (-1, 0)]:
            y, x = row + down, col + right
            inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
            if inside and valid[y, x] and labels[y, x] != label:
                found.append((int(row), int(col)))
                break
    return found


def brute_score(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int, tolerance: float) -> float | None:
    """Boundary F1 from distances between all pairs of boundary pixels."""
    scores = []
    for label in [1] if num_classes == 2 else range(num_classes):
        hits, sizes = [0, 0], [0, 0]
        for prediction, target in pairs:
            valid = (target != IGNORE) & (prediction != IGNORE)
            sides = [brute_boundary(labels, valid, label) for labels in (prediction, target)]
            for side in (0, 1):
                sizes[side] += len(sides[side])
                hits[side] += sum(any(math.dist(a, b) <= tolerance for b in sides[1 - side]) for a in sides[side])
        if sizes[1] or (num_classes == 2 and sizes[0]):
            precision, recall = (hit / size if size else 0.0 for hit, size in zip(hits, sizes, strict=True))
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(scores)) if scores else None


class TestBoundaryF1:
    @examples
    @given(
        num_classes=st.sampled_from([2, 3]),
        tolerance=st.sampled_from([0, 1, 1.5, 2, 3.7, 30]),
        height=st.integers(1, 12),
        width=st.integers(1, 12),
        seed=st.integers(0, 9999),
    )
    def test_equals_brute_force(self, num_classes, tolerance, height, width, seed):
        random = np.random.default_rng(seed)
        weights = random.dirichlet(np.full(num_classes, 0.3))
        target, prediction = random.choice(num_classes, (2, 2, height, width), p=weights)
        target[random.random(target.shape) < 0.1] = IGNORE
        prediction[random.random(target.shape) < 0.03] = IGNORE
        result = boundary(torch.from_numpy(prediction), torch.from_numpy(target), num_classes, tolerance)
        expected = brute_score(list(zip(prediction, target, strict=True)), num_classes, tolerance)
        assert result.score() == (None if expected is None else pytest.approx(expected))

    def square(self, top: int = 5, left: int = 5, size: int = 10) -> Tensor:
        labels = torch.zeros(24, 24, dtype=torch.long)
        labels[top : top + size, left : left + size] = 1
        return labels

    def test_perfect(self):
        assert boundary(self.square(), self.square()).score() == 1.0

    @pytest.mark.parametrize(("shift", "matched"), [(1, True), (2, True), (3, False)])
    def test_tolerance_is_two_pixels(self, shift, matched):
        stripe = torch.zeros(8, 24, dtype=torch.long)
        stripe[:, 12:] = 1
        assert boundary(stripe.roll(shift, 1).index_fill(1, torch.arange(3), 0), stripe).score() == float(matched)

    def test_precision_and_recall_are_not_confused(self):
        more = self.square().index_put((torch.tensor([20]), torch.tensor([20])), torch.tensor(1))
        counts = boundary(more, self.square()).counts
        assert counts[1].tolist() == [36, 37, 36, 36]

    def test_image_edge_and_ignored_pixels_make_no_boundary(self):
        everything = torch.ones(6, 6, dtype=torch.long)
        assert boundary(everything, everything).score() is None
        half_ignored = everything.clone()
        half_ignored[:, 3:] = IGNORE
        wrong_there = everything.clone()
        wrong_there[:, 3:] = 0
        assert boundary(wrong_there, half_ignored).score() is None

    def test_missing_and_invented_objects_score_zero(self):
        empty = torch.zeros(24, 24, dtype=torch.long)
        assert boundary(empty, empty).score() is None
        assert boundary(self.square(), empty).score() == 0.0
        assert boundary(empty, self.square()).score() == 0.0

    def test_classes_without_a_true_boundary_do_not_enter_the_mean(self):
        prediction = self.square()
        prediction[20, 20] = 2
        assert 0.9 < boundary(prediction, self.square(), num_classes=3).score() < 1.0

    def test_bytes_and_masks(self):
        prediction, target = self.square(left=7), self.square()
        expected = boundary(prediction, target).counts
        assert torch.equal(boundary(prediction.byte(), target.byte()).counts, expected)
        assert torch.equal(boundary(prediction.bool(), target).counts, expected)

    def test_mistakes_are_refused(self):
        result = BoundaryF1(3)
        with pytest.raises(ValueError, match="target holds label 3;"):
            result.update(torch.zeros(2, 2).long(), torch.full((2, 2), 3))
        with pytest.raises(ValueError, match="prediction holds label 3;"):
            result.update(torch.full((2, 2), 3), torch.zeros(2, 2).long())
        with pytest.raises(ValueError, match=r"maps expected, got \(4,\)"):
            result.update(torch.zeros(4).long(), torch.zeros(4).long())
        with pytest.raises(ValueError, match="maps expected"):
            result.update(torch.zeros(2, 2).long(), torch.zeros(2, 3).long())
        with pytest.raises(ValueError, match="tolerance -1"):
            BoundaryF1(2, -1)
        with pytest.raises(ValueError, match="1 classes"):
            BoundaryF1(1)


class TestStreaming:
    @examples
    @given(
        order=st.permutations(range(6)),
        cuts=st.lists(st.integers(0, 6), max_size=4),
        chunk=st.sampled_from([1, 7, 1000]),
        seed=st.integers(0, 99),
    )
    def test_batches_and_order_do_not_matter(self, order, cuts, chunk, seed):
        prediction, target = random_maps(3, (6, 5, 6), seed)
        probability, binary = torch.rand(6, 5, 6), torch.where(target == 2, 0, target)
        whole = [ConfusionMatrix(3), BoundaryF1(3), ThresholdCurve(10)]
        parts = [ConfusionMatrix(3), BoundaryF1(3), ThresholdCurve(10)]
        for metric, inputs in zip(whole, [(prediction, target)] * 2 + [(probability, binary)], strict=True):
            metric.update(*inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "CHUNK", chunk)
            for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 6], strict=True):
                batch = order[start:stop]  # may be empty
                parts[0].update(prediction[batch], target[batch])
                parts[1].update(prediction[batch], target[batch])
                parts[2].update(probability[batch], binary[batch])
        assert all(torch.equal(one.counts, other.counts) for one, other in zip(whole, parts, strict=True))
        assert parts[0].scores(NAMES[3]) == whole[0].scores(NAMES[3])
