"""Simulated clicks: which points should a person be asked for? Started by ``experiments.py --active``.

Dense labels play the person. The network that ships is frozen, but for its last layer, which learns from the clicks: a
round takes a fraction of a second, and nothing but the choice of points differs between two strategies. Pixels are
looked at on a grid of every fourth one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from common.command.cli import say
from common.command.progress import Work, progress
from common.data.labeled import LabeledImage
from common.labels import IGNORE
from common.metrics.counts import ConfusionMatrix
from common.networks.normalize import normalize
from common.networks.unet_small import SMALL
from potsdam_points.labeling.suggest import PATCH, choose, uncertainty, values
from potsdam_points.labels import CLASSES
from potsdam_points.samples import NORMALIZATION
from potsdam_points.task import TASK

GRID = 4
"""Every n-th pixel a side can be clicked, and is scored."""
APART = 32 / GRID
"""Distance between suggestions, cells of the grid; the page's 32 pixels."""
CANDIDATES = 4000
ENOUGH = 0.9
"""Share of full supervision's mIoU that is wanted."""
DENSE = 20_000
"""Labeled pixels that stand for full supervision."""
DECAY, SOFTENED = 1.0, 0.5
"""Of the last layer's training: weight decay (sum of squares), exponent of the class weights."""
Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """Pictures as the last layer sees them, one above the other on the grid."""

    features: Tensor
    """(D, rows, columns) float32."""
    truth: NDArray[np.uint8]
    """(rows, columns), 255 = unknown."""

    @property
    def clickable(self) -> NDArray[np.int64]:
        """Flat indices of the pixels that have a truth."""
        return np.flatnonzero(self.truth != IGNORE)

    def flat(self, where: NDArray[np.int64] | None = None) -> Tensor:
        """(n, D) features of all pixels, or of some."""
        rows = self.features.flatten(1).T
        return rows if where is None else rows[torch.from_numpy(where)]

    def labels(self, where: NDArray[np.int64]) -> NDArray[np.int64]:
        """What a person would answer there."""
        return self.truth.ravel()[where].astype(np.int64)


def body() -> nn.Module:
    """The network that ships, ready to be looked into."""
    network = TASK.build("unet_small", outputs=len(CLASSES), **SMALL)
    TASK.initialize(network, "shipped")
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def look(network: nn.Module, patches: Sequence[LabeledImage]) -> Ground:
    """What the network's last layer gets of each patch."""
    seen: list[Tensor] = []
    hook = network.get_submodule("head").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    truth = []
    for patch in progress(patches, "looking at pictures", "picture"):
        image = torch.from_numpy(patch.unit()[None, :3]).to(memory_format=torch.channels_last)
        network(normalize(image, NORMALIZATION))
        truth.append(patch.classes[::GRID, ::GRID])
        step = GRID // 2  # the last layer works at half resolution
        seen[-1] = seen[-1][0, :, ::step, ::step][:, : truth[-1].shape[0], : truth[-1].shape[1]]
    hook.remove()
    return Ground(torch.cat(seen, dim=1), np.concatenate(truth))


def standardized(pool: Ground, held_out: Ground) -> tuple[Ground, Ground]:
    """Both with the pool's mean 0 and variance 1."""
    mean, std = pool.features.mean((1, 2), keepdim=True), pool.features.std((1, 2), keepdim=True) + 1e-6
    first, second = (Ground((one.features - mean) / std, one.truth) for one in (pool, held_out))
    return first, second


def fit(features: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """Train the last layer: (n, D) and (n,) -> (D + 1, K), the bias last; classes without a point cannot occur."""
    target = torch.from_numpy(labels)
    counts = torch.bincount(target, minlength=len(CLASSES)).float()
    unseen = counts == 0
    weight = (len(target) / counts.clamp(min=1)) ** SOFTENED
    weight = weight[target] / weight[target].mean()
    layer = torch.zeros(features.shape[1] + 1, len(CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([layer], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (features @ layer[:-1] + layer[-1]).masked_fill(unseen, -1e4)
        total = (F.cross_entropy(logits, target, reduction="none") * weight).sum() + DECAY * layer[:-1].square().sum()
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    layer = layer.detach()
    layer[-1] = layer[-1].masked_fill(unseen, -1e4)
    return layer


def probabilities(ground: Ground, layer: Tensor) -> Floats:
    """(K, rows, columns)."""
    found = (ground.flat() @ layer[:-1] + layer[-1]).softmax(1)
    return found.double().numpy().T.reshape(len(CLASSES), *ground.truth.shape)


def miou(ground: Ground, layer: Tensor) -> float:
    """Of the whole ground."""
    matrix = ConfusionMatrix(len(CLASSES))
    predicted = (ground.flat() @ layer[:-1] + layer[-1]).argmax(1)
    matrix.update(predicted, torch.from_numpy(ground.truth.ravel().astype(np.int64)))
    return float(matrix.scores(CLASSES)["miou"])


# Strategies: what is to be clicked next, given what the last layer says


@dataclass(frozen=True)
class Moment:
    """A simulated session before its next clicks."""

    ground: Ground
    probability: Floats
    """(K, rows, columns)."""
    known: NDArray[np.int64]
    """Flat indices of the points so far."""
    generator: np.random.Generator

    @property
    def counts(self) -> list[int]:
        """Points of each class so far."""
        return [int(count) for count in np.bincount(self.ground.labels(self.known), minlength=len(CLASSES))]

    def some(self) -> NDArray[np.int64]:
        """A random draw of pixels that can be clicked."""
        able = self.ground.clickable
        return self.generator.choice(able, min(CANDIDATES, len(able)), replace=False)


Strategy = Callable[[Moment, int], NDArray[np.int64]]


def at_random(moment: Moment, count: int) -> NDArray[np.int64]:
    """Any pixels."""
    return moment.generator.choice(moment.ground.clickable, count, replace=False)


def most_uncertain(moment: Moment, count: int) -> NDArray[np.int64]:
    """The pixels where two classes are nearest to a tie, wherever they lie."""
    able = moment.some()
    return np.asarray(able[np.argsort(-uncertainty(moment.probability).ravel()[able])[:count]])


def classes_in_turn(moment: Moment, count: int) -> NDArray[np.int64]:
    """Random pixels of the predicted class that has the fewest points."""
    able = moment.some()
    said, counts = moment.probability.argmax(axis=0).ravel()[able], np.array(moment.counts)
    chosen: list[int] = []
    for _ in range(count):
        kinds = np.unique(said)
        kind = kinds[counts[kinds].argmin()]
        chosen.append(int(moment.generator.choice(able[said == kind])))
        counts[kind] += 1
    return np.array(chosen)


def core_set(moment: Moment, count: int) -> NDArray[np.int64]:
    """Pixels farthest from all points in the space of features, one after the other (Sener and Savarese 2018)."""
    able = moment.some()
    features = moment.ground.flat(able)
    distance = torch.cdist(features, moment.ground.flat(moment.known)).amin(1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return np.asarray(able[chosen])


def valued(name: str, patch: int = PATCH) -> Strategy:
    """The page's choice, with one of its values of a pixel: valuable points that keep apart.

    Args:
        name: of the value.
        patch: side of the surroundings that it looks at, pixels.
    """

    def strategy(moment: Moment, count: int) -> NDArray[np.int64]:
        worth = values(moment.probability, moment.counts, name, round(patch / GRID))  # type: ignore[arg-type]
        worth = np.where(moment.ground.truth == IGNORE, 0, worth + 1e-9)
        known = np.stack(np.divmod(moment.known, worth.shape[1]), axis=1)
        found = choose(worth, moment.probability, known, count, moment.generator, APART)
        return np.asarray(found[:, 0] * worth.shape[1] + found[:, 1])

    return strategy


STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "margin": most_uncertain,
    "classes-in-turn": classes_in_turn,
    "core-set": core_set,
    "margin-apart": valued("margin"),
    "small-patch-apart": valued("patch", PATCH // 2),
    "patch-apart": valued("patch"),
    "balanced-apart": valued("balanced", PATCH // 2),
}


# Sessions


def simulate(pool: Ground, held_out: Ground, strategy: Strategy, rounds: int, each: int, seed: int) -> list[float]:
    """The mIoU on the held-out ground after each round; the first points are random ones."""
    generator = np.random.default_rng([seed, 1])
    known = generator.choice(pool.clickable, each, replace=False)
    curve: list[float] = []
    while True:
        layer = fit(pool.flat(known), pool.labels(known))
        curve.append(miou(held_out, layer))
        if len(curve) == rounds:
            return curve
        moment = Moment(pool, probabilities(pool, layer), known, generator)
        known = np.concatenate([known, strategy(moment, each)])


def full_supervision(pool: Ground, held_out: Ground, seed: int) -> float:
    """The mIoU with all labels, that is so many that more change nothing."""
    able = pool.clickable
    some = np.random.default_rng(seed).choice(able, min(DENSE, len(able)), replace=False)
    return miou(held_out, fit(pool.flat(some), pool.labels(some)))


def compare(
    grounds: Callable[[int], tuple[Ground, Ground]], seeds: int, rounds: int, each: int, names: Sequence[str]
) -> list[Row]:
    """Simulate every strategy with every seed; a row for each: its curve and full supervision's mIoU.

    Args:
        grounds: pool and held-out ground of a seed.
        seeds: how many.
        rounds: of a session.
        each: clicks of a round.
        names: of `STRATEGIES`.
    """
    rows: list[Row] = []
    with Work("simulating sessions", seeds * len(names), "session") as work:
        for seed in range(seeds):
            pool, held_out = standardized(*grounds(seed))
            full = full_supervision(pool, held_out, seed)
            say(f"seed {seed}: full supervision {full:.3f}")
            for name in names:
                curve = simulate(pool, held_out, STRATEGIES[name], rounds, each, seed)
                say(f"seed {seed}, {name}: {curve[-1]:.3f} after {rounds * each} clicks")
                rows.append({"strategy": name, "seed": seed, "full": full, "curve": curve})
                work.advance()
    return rows


def shares(rows: Sequence[Row]) -> dict[str, Floats]:
    """By strategy: (seeds, rounds) mIoU as a share of full supervision's."""
    table: dict[str, list[Floats]] = {}
    for row in rows:
        table.setdefault(row["strategy"], []).append(np.array(row["curve"]) / row["full"])
    return {name: np.stack(curves) for name, curves in table.items()}


def clicks_to(curve: Floats, each: int, wanted: float = ENOUGH) -> float | None:
    """Clicks at which a curve first reaches a share, between two rounds by a line; None = it does not."""
    reached = np.flatnonzero(curve >= wanted)
    if not len(reached):
        return None
    last = int(reached[0])
    if last == 0:
        return float(each)
    low, high = curve[last - 1], curve[last]
    return each * (last + float((wanted - low) / (high - low)))


def markdown(rows: Sequence[Row], each: int) -> str:
    """The table: shares of full supervision, and clicks to 90 % of it, from the mean over the seeds."""
    table = shares(rows)
    rounds = next(iter(table.values())).shape[1]
    shown = [round(rounds * part) for part in (0.25, 0.5, 1.0)]
    base = clicks_to(table["random"].mean(axis=0), each)
    header = ["strategy", *(f"share at {n * each}" for n in shown), "clicks to 90 %", "of random's", "single seeds"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name, curves in table.items():
        mean = curves.mean(axis=0)
        found = clicks_to(mean, each)
        ratio = "-"
        if found is not None:
            ratio = f"{found / base:.2f}" if base else f"< {found / (rounds * each):.2f}"
        singles = [clicks_to(curve, each) for curve in curves]
        cells = [name, *(f"{mean[n - 1]:.2f}" for n in shown), _clicks(found, rounds * each), ratio]
        lines.append("| " + " | ".join([*cells, ", ".join(_clicks(one, rounds * each) for one in singles)]) + " |")
    full = {row["seed"]: row["full"] for row in rows}
    said = ", ".join(f"{value:.3f}" for value in full.values())
    note = f"{len(full)} seeds, rounds of {each} clicks; full supervision's mIoU by seed: {said}."
    return "\n".join([*lines, "", note, ""])


def _clicks(value: float | None, most: int) -> str:
    return f"> {most}" if value is None else f"{value:.0f}"


def figure(rows: Sequence[Row], each: int) -> Figure:
    """The mIoU as a share of full supervision's against clicks: mean over the seeds, and random's range."""
    result = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = result.add_subplot()
    table: Mapping[str, Floats] = shares(rows)
    for name, curves in table.items():
        clicks = each * np.arange(1, curves.shape[1] + 1)
        color = "black" if name == "random" else None
        axes.plot(clicks, curves.mean(axis=0), label=name, color=color, linewidth=2 if "apart" in name else 1.2)
        if name == "random":
            axes.fill_between(clicks, curves.min(axis=0), curves.max(axis=0), color="black", alpha=0.1, linewidth=0)
    axes.axhline(ENOUGH, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="clicks", ylabel="mIoU, share of full supervision's", ylim=(0.3, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return result
