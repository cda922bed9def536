"""Losses: how far logits are from a partly labeled target.

Every loss takes logits ``(N, C, H, W)`` and a target ``(N, H, W)`` of class indices, and returns one scalar. ``C == 1``
is a binary network: the channel is the logit of class 1 and the target holds 0 and 1. ``C > 1`` is a softmax over
classes. Pixels of 255 (`IGNORE`) take no part.

What they all promise, through the one function `labeled_pixels`:

- the sums run in fp32 (fp64 stays fp64) outside autocast, so fp16 and bf16 logits give finite losses;
- logits under ignored pixels influence neither value nor gradient;
- a target without a labeled pixel gives 0.0 with a graph, so ``backward`` leaves zero gradients and not NaN;
- where several processes share a batch, sums are added up before they are divided: the loss is that of the whole batch.

`build_loss` turns a name such as ``"0.3*ce+0.7*dice"`` into a module; `LossRecipe` is what a checkpoint keeps of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.labels import IGNORE
from common.processes import total

EDGE, EDGE_REACH = 3, 3
"""How many times pixels near a border of classes count in ``edge_ce`` and ``edge_bce``, and how near, pixels."""


class LabeledPixels(NamedTuple):
    """Logits and target made safe to compute with."""

    logits: Tensor
    """(N, C, H, W), fp32 or fp64."""
    target: Tensor
    """(N, H, W) int64 in ``0 … classes - 1``; ignored pixels read 0."""
    valid: Tensor
    """(N, H, W) bool, False where ignored."""

    @property
    def classes(self) -> int:
        """Number of classes: two for a single logit channel."""
        return max(self.logits.shape[1], 2)


@contextmanager
def labeled_pixels(logits: Tensor, target: Tensor) -> Iterator[LabeledPixels]:
    """Leave autocast and yield full-precision logits, a target safe to index with, and the mask of scored pixels.

    Args:
        logits: ``(N, C, H, W)`` of any floating dtype.
        target: ``(N, H, W)`` of any integer dtype.

    Raises:
        ValueError: when the shapes do not fit, the target holds floats or, on the CPU, a label is neither a class nor
            255 (on an accelerator that check would stall the queue; indexing asserts there).
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits (N, C, H, W) and target (N, H, W) expected, got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if target.is_floating_point():
        raise ValueError(f"target holds {target.dtype}; class indices of an integer dtype expected")
    with torch.autocast(logits.device.type, enabled=False):
        valid = target != IGNORE
        full = logits if logits.dtype == torch.float64 else logits.float()
        full = full.masked_fill(~valid[:, None], 0.0)  # 0 * NaN is NaN, in sums and in gradients
        pixels = LabeledPixels(full, target.long().masked_fill(~valid, 0), valid)
        if target.device.type == "cpu" and target.numel():
            low, high = (int(value) for value in pixels.target.aminmax())
            if low < 0 or high >= pixels.classes:
                raise ValueError(
                    f"target holds label {low if low < 0 else high}; with {logits.shape[1]} logit channel(s) only "
                    f"0 to {pixels.classes - 1} and {IGNORE} (ignored) are known: map labels when reading them"
                )
        yield pixels


def _class_weight(weight: Tensor | Sequence[float], pixels: LabeledPixels) -> Tensor:
    """Return class weights on the logits' device, in their precision."""
    vector = torch.as_tensor(weight).to(pixels.logits)
    if vector.shape != (pixels.classes,):
        raise ValueError(f"class weights of shape {tuple(vector.shape)} given for {pixels.classes} classes")
    return vector


def labeled_mean(loss: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average a loss per pixel over valid pixels; one that is weighted already is divided by the sum of ``weight``.

    Args:
        loss: ``(N, H, W)``, or of any other shape.
        valid: bool of that shape.
        weight: the same, if pixels do not count alike.
    """
    mass = valid if weight is None else weight.masked_fill(~valid, 0.0)
    return _quotient(loss.masked_fill(~valid, 0.0).sum(), mass.sum())


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """Divide two sums of the batch, of all processes that share it; 0 for nothing over nothing."""
    above, below = total(torch.stack([above, below.to(above.dtype)])).unbind()
    return above / torch.where(below > 0, below, 1.0)


def _surprise(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``-log P(true class)`` for logits ``(N, C, …)`` and target ``(N, …)``."""
    if logits.shape[1] == 1:
        logit = logits[:, 0]
        return -F.logsigmoid(torch.where(target == 1, logit, -logit))
    return F.cross_entropy(logits, target, reduction="none")


def _edge_weight(pixels: LabeledPixels) -> Tensor:
    """1 for a pixel, and `EDGE` where a labeled pixel of another class is not farther than `EDGE_REACH`."""
    classes, ignored = pixels.target[:, None].to(pixels.logits.dtype), ~pixels.valid[:, None]
    side = 2 * EDGE_REACH + 1
    high, low = (
        sign * F.max_pool2d((sign * classes).masked_fill(ignored, -math.inf), side, 1, EDGE_REACH) for sign in (1, -1)
    )
    return torch.where(high > low, float(EDGE), 1.0)[:, 0].to(pixels.logits.dtype)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    edges: bool = False,
) -> Tensor:
    """Cross-entropy, normalized as torch does: the weighted sum over labeled pixels over the sum of their weights.

    A single logit channel ``z`` is read as the two channels ``(0, z)``, so weights and smoothing mean the same as for
    two channels.

    Args:
        logits: ``(N, C, H, W)``.
        target: ``(N, H, W)`` class indices.
        weight: one weight per class (two for a single channel).
        label_smoothing: share of the target spread evenly over all classes, in ``[0, 1)``.
        edges: pixels within `EDGE_REACH` of another class count `EDGE` times.
    """
    with labeled_pixels(logits, target) as pixels:
        scores = pixels.logits
        if scores.shape[1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
        weights = None if weight is None else _class_weight(weight, pixels)
        loss = F.cross_entropy(scores, pixels.target, weights, reduction="none", label_smoothing=label_smoothing)
        mass = None if weights is None else weights[pixels.target]
        if edges:
            weight_of_edges = _edge_weight(pixels)
            loss, mass = loss * weight_of_edges, weight_of_edges if mass is None else mass * weight_of_edges
        return labeled_mean(loss, pixels.valid, mass)


def bce(logits: Tensor, target: Tensor, *, edges: bool = False) -> Tensor:
    """Binary cross-entropy of one logit channel ``(N, 1, H, W)``, averaged over labeled pixels; edges as above.

    Raises:
        ValueError: when the logits have more than one channel.
    """
    if logits.shape[1] != 1:
        raise ValueError(f"bce needs one logit channel, got {logits.shape[1]}; use ce")
    with labeled_pixels(logits, target) as pixels:
        loss, mass = _surprise(pixels.logits, pixels.target), _edge_weight(pixels) if edges else None
        return labeled_mean(loss if mass is None else loss * mass, pixels.valid, mass)


def _focal_terms(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None) -> Tensor:
    """Return the weighted focal loss of every pixel."""
    surprise = _surprise(logits, target)
    if gamma > 0:
        # expm1 keeps 1 - p exact near p = 1; the floor keeps the slope finite there for gamma < 1.
        miss = -torch.expm1(-surprise)
        surprise = miss.clamp_min(torch.finfo(miss.dtype).tiny).pow(gamma) * surprise
    return surprise if weight is None else surprise * weight[target]


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Focal loss ``-w (1 - p)^gamma log p``, ``p`` the probability of the true class, averaged over labeled pixels.

    Lin et al., Focal Loss for Dense Object Detection, 2017, with class weights in the place of alpha. The divisor is
    the number of pixels, not the sum of weights. Arguments and shapes as in `cross_entropy`; ``gamma >= 0``, and 0 is
    cross-entropy.
    """
    with labeled_pixels(logits, target) as pixels:
        weights = None if weight is None else _class_weight(weight, pixels)
        return labeled_mean(_focal_terms(pixels.logits, pixels.target, gamma, weights), pixels.valid)


def partial_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Focal cross-entropy for point labels: the mean over labeled pixels alone.

    The value of `focal`, but labeled pixels are picked before the softmax, so time and memory follow the number of
    points and not the size of the image (three times faster at one labeled pixel in fifty). Unlabeled pixels hold
    255.
    """
    if logits.device.type != "cpu":  # to know their number would wait for the device
        return focal(logits, target, gamma=gamma, weight=weight)
    with labeled_pixels(logits, target) as pixels:
        weights = None if weight is None else _class_weight(weight, pixels)
        points = pixels.logits.movedim(1, -1)[pixels.valid]
        loss = _focal_terms(points, pixels.target[pixels.valid], gamma, weights)
        return _quotient(loss.sum(), pixels.valid.sum())


def _overlap(logits: Tensor, target: Tensor, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Return ``1 - score(intersection, predicted, truth)`` of the batch's soft counts, averaged over classes present.

    One logit channel: the foreground is the only class. Without a foreground pixel the overlap is undefined and the
    loss is the mean foreground probability instead: 0 for predicting nothing, 1 for predicting it everywhere, with a
    slope that does not vanish between.
    """
    with labeled_pixels(logits, target) as pixels:
        binary = logits.shape[1] == 1
        probability = pixels.logits.sigmoid() if binary else pixels.logits.softmax(dim=1)
        # A plane at a time: no one-hot target, and unbind has a backward without a zero tensor per class.
        sums = []
        for label, plane in enumerate(probability.unbind(dim=1), start=int(binary)):
            here = (pixels.target == label) & pixels.valid
            counts = [here.sum().to(plane.dtype), pixels.valid.sum().to(plane.dtype)]
            sums.append(torch.stack([(plane * here).sum(), (plane * pixels.valid).sum(), *counts]))
        intersection, predicted, truth, pixel_count = total(torch.stack(sums, dim=1)).unbind()
        present = truth > 0
        safe_truth = torch.where(present, truth, 1.0)  # absent classes must not divide by zero, not even behind a mask
        absent_loss = predicted / pixel_count.clamp_min(1) if binary else torch.zeros_like(predicted)
        loss = torch.where(present, 1.0 - score(intersection, predicted, safe_truth), absent_loss)
        return loss.sum() / present.sum().clamp_min(1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss ``1 - 2 |P T| / (|P| + |T|)``, sums over the batch, mean over the classes that have a truth pixel.

    Milletari et al., V-Net, 2016, with plain (not squared) sums. One channel scores the foreground only; if the target
    has none, the loss is the mean foreground probability. Shapes as in `cross_entropy`.
    """
    return _overlap(logits, target, lambda both, predicted, truth: 2 * both / (predicted + truth))


def jaccard(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Jaccard (IoU) loss ``1 - |P T| / (|P| + |T| - |P T|)``; classes, absence and shapes as in `dice`."""
    return _overlap(logits, target, lambda both, predicted, truth: both / (predicted + truth - both))


ONE_LOGIT = ("bce", "dice", "jaccard", "focal", "edge_bce")
SEVERAL_LOGITS = ("ce", "focal", "dice", "jaccard", "edge_ce", "partial_ce")
"""Names of losses for networks with one logit channel, and with a channel for each class."""
TERMS = (*SEVERAL_LOGITS, "bce", "edge_bce")


class SegmentationLoss(nn.Module):
    """Weighted sum of losses by name: the module twin of every function here.

    Class weights act in ``ce``, ``edge_ce``, ``focal`` and ``partial_ce``, label smoothing in the first two, gamma in
    the last two.
    """

    weight: Tensor | None

    def __init__(
        self, factors: dict[str, float], *, weight: Tensor | None, label_smoothing: float, gamma: float
    ) -> None:
        super().__init__()
        self.factors = factors
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)

    def _term(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        match name:
            case "ce" | "edge_ce":
                settings: dict[str, Any] = {"weight": self.weight, "label_smoothing": self.label_smoothing}
                return cross_entropy(logits, target, **settings, edges=name == "edge_ce")
            case "focal":
                return focal(logits, target, gamma=self.gamma, weight=self.weight)
            case "partial_ce":
                return partial_cross_entropy(logits, target, gamma=self.gamma, weight=self.weight)
            case "dice":
                return dice(logits, target)
            case "jaccard":
                return jaccard(logits, target)
            case _:
                return bce(logits, target, edges=name == "edge_bce")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``(N, C, H, W)`` against a target ``(N, H, W)`` as a scalar."""
        if self.weight is not None and self.weight.device != logits.device:
            self.weight = self.weight.to(logits.device)  # once: a copy waits for the device
        return torch.stack([factor * self._term(name, logits, target) for name, factor in self.factors.items()]).sum()


def _parse(spec: str) -> dict[str, float]:
    """Return the factor of each term of a sum such as ``"0.3*ce+0.7*dice"``."""
    factors: dict[str, float] = {}
    for part in spec.lower().split("+"):
        number, star, name = part.rpartition("*")
        name = name.strip()
        if name not in TERMS:
            raise ValueError(
                f"unknown loss {name!r} in {spec!r}; known: {', '.join(TERMS)}, and sums such as 0.3*ce+0.7*dice"
            )
        if name in factors:
            raise ValueError(f"loss {name!r} appears twice in {spec!r}; add the factors up")
        try:
            factor = float(number) if star else 1.0
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            raise ValueError(f"factor {number.strip()!r} of {name!r} in {spec!r} is not a positive number")
        factors[name] = factor
    return factors


def build_loss(
    spec: str, *, weight: Tensor | Sequence[float] | None = None, label_smoothing: float = 0.0, gamma: float = 2.0
) -> SegmentationLoss:
    """Build a loss from a name or a weighted sum of names.

    Args:
        spec: ``ce``, ``focal``, ``dice``, ``jaccard``, ``bce``, ``partial_ce``; ``edge_ce`` and ``edge_bce``, in which
            pixels near a border of classes count more; or a sum such as ``"0.3*ce+0.7*dice"``.
        weight: one weight per class, for the terms that know weights.
        label_smoothing: for ``ce`` and ``edge_ce``, in ``[0, 1)``.
        gamma: focal exponent ``>= 0`` of ``focal`` and ``partial_ce``.

    Raises:
        ValueError: when a term, a factor or a setting makes no sense.
    """
    factors = _parse(spec)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label smoothing {label_smoothing:g} is outside [0, 1)")
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma {gamma:g} is not a number of at least 0")
    weights = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
    if weights is not None and not (weights.isfinite().all() and weights.ge(0).all() and weights.any()):
        raise ValueError(f"class weights {weights.tolist()} must be finite, at least 0 and not all 0")
    return SegmentationLoss(factors, weight=weights, label_smoothing=label_smoothing, gamma=gamma)


@dataclass(frozen=True)
class LossRecipe:
    """All that a loss is built from, in plain values: what a checkpoint says about how it was trained."""

    terms: str = "ce"
    """A name or a weighted sum of names, as `build_loss` reads it."""
    label_smoothing: float = 0.0
    gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None

    def build(self) -> SegmentationLoss:
        """Build the loss.

        Raises:
            ValueError: see `build_loss`.
        """
        return build_loss(self.terms, weight=self.class_weights, label_smoothing=self.label_smoothing, gamma=self.gamma)

    def check(self, terms: Sequence[str]) -> None:
        """Refuse what no loss, or no loss of a kind of network, can be built from.

        Args:
            terms: names that suit the network, `ONE_LOGIT` or `SEVERAL_LOGITS`.

        Raises:
            ValueError: see `build_loss`; or a term is for the other kind.
        """
        for name in self.build().factors:
            if name not in terms:
                other = "one logit" if name in ONE_LOGIT else "several logits"
                raise ValueError(f"--loss {self.terms}: {name} is for {other}; use {', '.join(terms)}")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> LossRecipe:
        """The recipe that a training's resolved configuration names; class weights are not among its values."""
        known = {"terms": "loss", "label_smoothing": "label_smoothing", "gamma": "gamma"}
        return cls(**{name: config[key] for name, key in known.items() if key in config})
