"""One base tester asks of every loss what all promise; each loss adds its equality to independent implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, softmax
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from common.labels import IGNORE
from common.losses import (
    TERMS,
    bce,
    build_loss,
    cross_entropy,
    dice,
    focal,
    jaccard,
    labeled_pixels,
    partial_cross_entropy,
)
from tests.peers import Peer

smp = Peer("segmentation_models_pytorch")


def random_case(channels: int, size: tuple[int, int, int] = (3, 8, 9), seed: int = 0, ignored: float = 0.3):
    """Logits with a spread of 3 and a target with a share of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = size
    logits = 3 * torch.randn(count, channels, height, width, generator=generator)
    target = torch.randint(0, max(channels, 2), size, generator=generator)
    target[torch.rand(size, generator=generator) < ignored] = IGNORE
    return logits, target


def valid_arrays(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The valid pixels as arrays: logits (M, C) and target (M,)."""
    keep = (target != IGNORE).numpy()
    return logits.movedim(1, -1).numpy()[keep].astype(float), target.numpy()[keep]


def test_the_masking_leaves_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with labeled_pixels(*random_case(2)):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


class LossTester:
    """What every loss must do, whatever it measures."""

    loss: Callable[..., Tensor]
    channels: ClassVar[tuple[int, ...]] = (1, 2, 5)

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.channels, indirect=True)

    @pytest.fixture
    def case(self, request):
        return random_case(request.param)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("scale", [1.0, 50.0, 5000.0])
    def test_finite_in_any_precision(self, case, dtype, scale):
        logits, target = case
        logits = (logits * scale).to(dtype).requires_grad_()
        loss = self.loss(logits, target)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert loss.shape == ()
        assert logits.grad.isfinite().all()
        torch.testing.assert_close(loss, self.loss(logits.detach().float(), target))

    def test_autocast_changes_nothing(self, case):
        logits, target = case
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = self.loss(logits, target)
        assert torch.equal(inside, self.loss(logits, target))

    def test_half_precision_all_foreground_at_512(self, case):
        logits = torch.full((1, case[0].shape[1], 512, 512), -10.0, dtype=torch.float16)
        logits[:, -1] = 10.0
        target = torch.full((1, 512, 512), max(logits.shape[1], 2) - 1)
        assert 0 <= self.loss(logits, target) < 1e-3

    def test_ignored_pixels_do_not_matter(self, case):
        logits, target = case
        hidden = (target == IGNORE)[:, None]
        noise = torch.where(hidden, 100 * torch.randn_like(logits), logits).requires_grad_()
        loss = self.loss(noise, target)
        loss.backward()
        assert torch.equal(loss.detach(), self.loss(logits, target))
        assert not noise.grad.masked_select(hidden).any()
        assert noise.grad.masked_select(~hidden).any()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_no_number_under_ignored_pixels_does_not_matter(self, case, value):
        logits, target = case
        hidden = (target == IGNORE)[:, None]
        noise = torch.where(hidden, value, logits).requires_grad_()
        loss = self.loss(noise, target)
        loss.backward()
        assert torch.equal(loss.detach(), self.loss(logits, target))
        assert noise.grad.isfinite().all() and not noise.grad.masked_select(hidden).any()

    def test_everything_ignored_is_zero_with_a_graph(self, case):
        logits = case[0].requires_grad_()
        loss = self.loss(logits, torch.full_like(case[1], IGNORE))
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(logits.grad, torch.zeros_like(logits))

    def test_absent_classes_stay_finite(self, case):
        logits, target = case
        logits = logits.requires_grad_()
        loss = self.loss(logits, torch.where(target == IGNORE, IGNORE, 0))
        loss.backward()
        assert loss.isfinite()
        assert loss > 0
        assert logits.grad.isfinite().all()

    def test_batch_of_one_pixel(self, case):
        logits, target = case
        target = torch.where(target == IGNORE, 0, target)
        assert self.loss(logits[:1, :, :1, :1], target[:1, :1, :1]).isfinite()

    def test_order_of_images_does_not_matter(self, case):
        logits, target = case
        torch.testing.assert_close(self.loss(logits.flip(0), target.flip(0)), self.loss(logits, target))

    def test_gradient_is_right(self, case):
        logits = case[0][:2, :, :3, :3].double().requires_grad_()
        target = case[1][:2, :3, :3]
        assert self.loss(logits, target).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x: self.loss(x, target), logits)

    def test_better_logits_lose_less(self, case):
        logits, target = case
        truth = F.one_hot(torch.where(target == IGNORE, 0, target), max(logits.shape[1], 2)).movedim(-1, 1).float()
        push = 2 * truth[:, 1:] - 1 if logits.shape[1] == 1 else truth
        assert self.loss(logits + 4 * push, target) < self.loss(logits, target)
        assert self.loss(100 * push, target) < 1e-6

    def test_bytes_are_a_target_too(self, case):
        logits, target = case
        assert torch.equal(self.loss(logits, target.byte()), self.loss(logits, target))

    @pytest.mark.parametrize("label", [-3, 77])
    def test_unknown_labels_are_refused(self, case, label):
        logits, target = case
        with pytest.raises(ValueError, match=f"label {label};"):
            self.loss(logits, torch.where(target == 0, label, target))

    def test_wrong_shapes_are_refused(self, case):
        logits, target = case
        with pytest.raises(ValueError, match="expected, got"):
            self.loss(logits, target[:, None])
        with pytest.raises(ValueError, match="integer"):
            self.loss(logits, target.float())


class WeightedTester(LossTester):
    """What losses with class weights must do besides."""

    def test_unit_weights_change_nothing(self, case):
        logits, target = case
        weight = torch.ones(max(logits.shape[1], 2))
        torch.testing.assert_close(self.loss(logits, target, weight=weight), self.loss(logits, target))

    def test_one_channel_is_two_with_a_zero(self):
        logits, target = random_case(1)
        pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
        weight = [0.3, 1.7]
        torch.testing.assert_close(self.loss(logits, target, weight=weight), self.loss(pair, target, weight=weight))

    def test_only_weightless_classes_is_zero(self, case):
        logits, target = case
        weight = torch.zeros(max(logits.shape[1], 2))
        weight[1] = 1.0
        assert self.loss(logits, torch.where(target == IGNORE, IGNORE, 0), weight=weight) == 0.0

    def test_number_of_weights_is_checked(self, case):
        logits, target = case
        with pytest.raises(ValueError, match=r"shape \(7,\)"):
            self.loss(logits, target, weight=torch.ones(7))


class TestCrossEntropy(WeightedTester):
    loss = staticmethod(cross_entropy)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.05])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("channels", [2, 5])
    def test_equals_torch(self, channels, weighted, label_smoothing):
        logits, target = random_case(channels)
        weight = torch.rand(channels) + 0.1 if weighted else None
        expected = F.cross_entropy(logits, target, weight, ignore_index=IGNORE, label_smoothing=label_smoothing)
        actual = cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing)
        torch.testing.assert_close(actual, expected)

    def test_equals_the_formula(self):
        logits, target = random_case(5)
        values, truth = valid_arrays(logits, target)
        weight = np.array([0.5, 1, 2, 3, 4])
        surprise = -log_softmax(values, axis=1)[np.arange(len(truth)), truth]
        expected = (weight[truth] * surprise).sum() / weight[truth].sum()
        assert cross_entropy(logits, target, weight=weight.tolist()).item() == pytest.approx(expected, rel=1e-5)

    def test_one_channel_smoothing(self):
        logits, target = random_case(1, ignored=0.0)
        smooth = 0.9 * target + 0.05
        expected = F.binary_cross_entropy_with_logits(logits[:, 0], smooth)
        torch.testing.assert_close(cross_entropy(logits, target, label_smoothing=0.1), expected)


class TestBCE(LossTester):
    loss = staticmethod(bce)
    channels = (1,)

    def test_equals_torch_and_smp(self):
        logits, target = random_case(1)
        keep = target != IGNORE
        expected = F.binary_cross_entropy_with_logits(logits[:, 0][keep], target[keep].float())
        torch.testing.assert_close(bce(logits, target), expected)
        everywhere = target.masked_fill(~keep, 0)
        peer = smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)(logits, everywhere[:, None].float())
        torch.testing.assert_close(bce(logits, everywhere), peer)

    def test_needs_one_channel(self):
        with pytest.raises(ValueError, match="one logit channel, got 2; use ce"):
            bce(*random_case(2))


class FocalTester(WeightedTester):
    """What both ways to the focal loss must do besides."""

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
    def test_binary_equals_torchvision_and_smp(self, gamma):
        logits, target = random_case(1)
        keep = target != IGNORE
        actual = self.loss(logits, target, gamma=gamma)
        expected = sigmoid_focal_loss(logits[:, 0][keep], target[keep].float(), alpha=-1, gamma=gamma, reduction="mean")
        torch.testing.assert_close(actual, expected)
        peer = smp.losses.FocalLoss("binary", alpha=None, gamma=gamma, ignore_index=IGNORE)
        torch.testing.assert_close(actual, peer(logits, target))

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    def test_equals_the_formula(self, gamma):
        logits, target = random_case(5)
        values, truth = valid_arrays(logits, target)
        weight = np.array([0.5, 1, 2, 3, 4])
        p = softmax(values, axis=1)[np.arange(len(truth)), truth]
        expected = (-weight[truth] * (1 - p) ** gamma * np.log(p)).mean()
        actual = self.loss(logits, target, gamma=gamma, weight=torch.tensor(weight))
        assert actual.item() == pytest.approx(expected, rel=1e-5)

    def test_gamma_zero_is_cross_entropy(self, case):
        torch.testing.assert_close(self.loss(*case, gamma=0.0), cross_entropy(*case))

    @pytest.mark.parametrize("channels", [1, 5])
    def test_certain_pixels_have_a_finite_slope(self, channels):
        logits = torch.zeros(1, channels, 2, 2)
        logits[:, -1] = 200.0
        logits.requires_grad_()
        self.loss(logits, torch.full((1, 2, 2), max(channels, 2) - 1), gamma=0.5).backward()
        assert logits.grad.isfinite().all()


class TestFocal(FocalTester):
    loss = staticmethod(focal)


class TestPartialCrossEntropy(FocalTester):
    loss = staticmethod(partial_cross_entropy)

    def test_is_the_mean_over_points(self):
        logits, _ = random_case(4)
        target = torch.full((3, 8, 9), IGNORE)
        target[0, 1, 2], target[2, 7, 8] = 3, 1
        points = torch.stack([logits[0, :, 1, 2], logits[2, :, 7, 8]])
        expected = F.cross_entropy(points, torch.tensor([3, 1]))
        torch.testing.assert_close(partial_cross_entropy(logits, target, gamma=0.0), expected)


class OverlapTester(LossTester):
    """What Dice and Jaccard must do besides."""

    peer: Callable[..., torch.nn.Module]

    def formula(self, both: float, predicted: float, truth: float) -> float:
        raise NotImplementedError

    def test_equals_smp_with_all_classes_present(self, case):
        logits, target = case
        target = torch.where(target == IGNORE, 0, target)  # SMP's Jaccard counts ignored pixels in the prediction
        peer = self.peer("binary" if logits.shape[1] == 1 else "multiclass")
        torch.testing.assert_close(self.loss(logits, target), peer(logits, target))

    @pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 2, 3], [4]])
    def test_equals_the_formula(self, labels):
        logits, target = random_case(5)
        target = torch.where(torch.isin(target, torch.tensor([*labels, IGNORE])), target, labels[0])
        values, truth = valid_arrays(logits, target)
        p = softmax(values, axis=1)
        scores = [
            self.formula(p[truth == label, label].sum(), p[:, label].sum(), sum(truth == label)) for label in labels
        ]
        assert self.loss(logits, target).item() == pytest.approx(1 - np.mean(scores), rel=1e-5)

    def test_binary_equals_the_formula(self):
        logits, target = random_case(1)
        values, truth = valid_arrays(logits, target)
        p = expit(values[:, 0])
        expected = 1 - self.formula(p[truth == 1].sum(), p.sum(), truth.sum())
        assert self.loss(logits, target).item() == pytest.approx(expected, rel=1e-5)

    def test_is_a_score_of_the_batch_not_a_mean_over_images(self, case):
        logits, target = case
        wide = logits.movedim(0, 1).flatten(1, 2)[None]
        torch.testing.assert_close(self.loss(logits, target), self.loss(wide, target.flatten(0, 1)[None]))

    def test_empty_foreground(self):
        target = torch.zeros(2, 8, 8, dtype=torch.long)
        target[:, :, 6:] = IGNORE
        for logit, expected in [(-30.0, 0.0), (0.0, 0.5), (30.0, 1.0)]:
            logits = torch.full((2, 1, 8, 8), logit)
            assert self.loss(logits, target).item() == pytest.approx(expected, abs=1e-6)
        logits = torch.zeros(2, 1, 8, 8, requires_grad=True)
        self.loss(logits, target).backward()
        assert logits.grad[..., :6].min() > 1e-3  # the slope pushes every foreground probability down

    def test_absent_classes_do_not_count(self):
        logits, target = torch.zeros(1, 6, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
        target[:, 2:] = 1
        expected = 1 - self.formula(8 / 6, 16 / 6, 8)
        assert self.loss(logits, target).item() == pytest.approx(expected)


class TestDice(OverlapTester):
    loss = staticmethod(dice)
    peer = Peer("segmentation_models_pytorch.losses:DiceLoss")

    def formula(self, both, predicted, truth):
        return 2 * both / (predicted + truth)

    def test_six_classes_of_which_two_are_present(self):
        target = torch.arange(2).repeat(1, 4, 2)
        assert dice(torch.zeros(1, 6, 4, 4), target).item() == pytest.approx(0.75)


class TestJaccard(OverlapTester):
    loss = staticmethod(jaccard)
    peer = Peer("segmentation_models_pytorch.losses:JaccardLoss")

    def formula(self, both, predicted, truth):
        return both / (predicted + truth - both)


class TestEdges:
    """Pixels near a border of classes count three times."""

    @staticmethod
    def near(target):
        """Whether a labeled pixel of another class lies within three pixels, one pixel after the other."""
        near = np.zeros(target.shape, bool)
        for image, row, col in np.ndindex(*target.shape):
            window = target[image, max(0, row - 3) : row + 4, max(0, col - 3) : col + 4]
            near[image, row, col] = len(set(window[window != IGNORE])) > 1
        return near

    @pytest.mark.parametrize("channels", [1, 4])
    @pytest.mark.parametrize("ignored", [0.0, 0.3, 0.97])
    def test_the_mean_over_pixels_with_their_weights(self, channels, ignored):
        logits, target = random_case(channels, (2, 17, 23), ignored=ignored)
        target[:, :, :12] = torch.where(target[:, :, :12] == IGNORE, IGNORE, 1)  # half of it is far from any border
        weight = np.where(self.near(target.numpy()), 3.0, 1.0)[(target != IGNORE).numpy()]
        scores, truth = valid_arrays(logits, target)
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1) if channels == 1 else scores
        surprise = -log_softmax(scores, axis=1)[np.arange(len(truth)), truth]
        expected = torch.tensor(np.average(surprise, weights=weight), dtype=torch.float32)
        assert (weight == 1).any() and ((weight == 3).any() or ignored == 0.97)
        torch.testing.assert_close(cross_entropy(logits, target, edges=True), expected)
        if channels == 1:
            torch.testing.assert_close(bce(logits, target, edges=True), expected)


class TestBuildLoss:
    direct: ClassVar[dict[str, Callable[..., Tensor]]] = {
        "ce": lambda x, y: cross_entropy(x, y, weight=[0.4, 1.6], label_smoothing=0.1),
        "focal": lambda x, y: focal(x, y, gamma=1.5, weight=[0.4, 1.6]),
        "partial_ce": lambda x, y: partial_cross_entropy(x, y, gamma=1.5, weight=[0.4, 1.6]),
        "dice": dice,
        "jaccard": jaccard,
        "bce": bce,
        "edge_ce": lambda x, y: cross_entropy(x, y, weight=[0.4, 1.6], label_smoothing=0.1, edges=True),
        "edge_bce": lambda x, y: bce(x, y, edges=True),
    }

    def test_all_names_are_covered(self):
        assert set(self.direct) == set(TERMS)

    @pytest.mark.parametrize("name", TERMS)
    def test_name_and_settings_reach_the_function(self, name):
        logits, target = random_case(1)
        loss = build_loss(name, weight=[0.4, 1.6], label_smoothing=0.1, gamma=1.5)
        torch.testing.assert_close(loss(logits, target), self.direct[name](logits, target))

    @pytest.mark.parametrize("name", TERMS)
    def test_defaults_are_the_functions_own(self, name):
        logits, target = random_case(1)
        functions = {
            "ce": cross_entropy,
            "focal": focal,
            "partial_ce": partial_cross_entropy,
            "edge_ce": partial(cross_entropy, edges=True),
        }
        expected = {**self.direct, **functions}[name](logits, target)
        torch.testing.assert_close(build_loss(name)(logits, target), expected)

    @pytest.mark.parametrize(
        ("spec", "factors"),
        [
            ("ce+dice", {"ce": 1, "dice": 1}),
            ("0.3*ce+0.7*dice", {"ce": 0.3, "dice": 0.7}),
            (" 2 * BCE + dice ", {"bce": 2, "dice": 1}),
            ("focal+dice+1e-1*jaccard", {"focal": 1, "dice": 1, "jaccard": 0.1}),
        ],
    )
    def test_sums(self, spec, factors):
        logits, target = random_case(1)
        expected = sum(factor * build_loss(name)(logits, target) for name, factor in factors.items())
        torch.testing.assert_close(build_loss(spec)(logits, target), expected)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("ce+lovasz", "unknown loss 'lovasz' in 'ce+lovasz'; known: ce, focal, dice, jaccard, edge_ce, partial_ce"),
            ("", "unknown loss ''"),
            ("ce+", "unknown loss ''"),
            ("ce+0.5*ce", "'ce' appears twice"),
            ("-1*ce", "factor '-1' of 'ce'"),
            ("0*ce", "factor '0' of 'ce'"),
            ("nan*ce", "factor 'nan' of 'ce'"),
            ("inf*ce", "factor 'inf' of 'ce'"),
            ("much*ce", "factor 'much' of 'ce'"),
            ("*ce", "factor '' of 'ce'"),
        ],
    )
    def test_nonsense_is_one_clear_line(self, spec, message):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            build_loss(spec)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        "settings",
        [
            {"label_smoothing": 1.0},
            {"label_smoothing": -0.1},
            {"gamma": -1.0},
            {"gamma": math.inf},
            {"weight": [1.0, math.nan]},
            {"weight": [1.0, -1.0]},
            {"weight": [0.0, 0.0]},
        ],
    )
    def test_senseless_settings_are_refused(self, settings):
        with pytest.raises(
            ValueError, match=r"^(label smoothing|gamma|class weights) .*(outside|not a number|must be)"
        ):
            build_loss("ce+focal", **settings)

    def test_weights_move_with_the_module_but_stay_out_of_checkpoints(self):
        loss = build_loss("ce", weight=[1.0, 2.0])
        assert loss.state_dict() == {}
        assert loss.to(torch.float64).weight.dtype == torch.float64
