"""How often the intervals of permeability/estimate.py hold, on simulated maps whose truth is known.

``python benchmarks/area_intervals.py --maps 1000``: each map has its own number of classes (2, 4 or 6), class shares
(1-50 %), accuracy (0.70-0.98) and way of being wrong (errors anywhere, or where it keeps the shares); 100, 200 or 400
points are drawn as the command draws them. Counted: intervals that hold the truth, those that leave [0, area], and
their width against that of a simple random sample of as many points (the clicks alone).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402 - imports begin at the repository's root
import tyro  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.tables import write_table  # noqa: E402
from permeability.area import Auxiliary, Points, Share, Strata, allocate, share  # noqa: E402
from permeability.estimate import EXPECTED_SPREAD, LEAST  # noqa: E402

PIXELS, TOTALS = 40_000, (100, 200, 400)


def simulate_map(
    generator: np.random.Generator, classes: int, accuracy: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Truth and map of every pixel, and what a network might say of each class: sure of itself, more or less."""
    shares = generator.uniform(0.01, 0.5, classes)
    shares = np.array([1 - shares[0], shares[0]]) if classes == 2 else shares / shares.sum()
    truth = generator.choice(classes, PIXELS, p=shares)
    wrong = generator.random(PIXELS) > accuracy
    other = (truth + generator.integers(1, classes, PIXELS)) % classes
    if generator.integers(2):
        other = np.where(wrong, generator.permutation(truth), truth)
    mapped = np.where(wrong, other, truth)
    score = generator.normal(0, 1, (PIXELS, classes)) + 1.5 * np.eye(classes)[truth] + 1.5 * np.eye(classes)[mapped]
    odds = np.exp(generator.uniform(0.5, 2) * score)
    return truth, mapped, odds / odds.sum(axis=1, keepdims=True)


def draw(
    generator: np.random.Generator, mapped: NDArray[np.int64], total: int
) -> tuple[NDArray[np.int64], Points, Strata]:
    """Pixels drawn as the command draws them, as points in their strata."""
    kinds, pixels = np.unique(mapped, return_counts=True)
    strata = Strata(pixels.astype(float), pixels)
    counts = allocate(strata, np.full(len(kinds), EXPECTED_SPREAD), total, min(LEAST, total // len(kinds)))
    pairs = zip(kinds, counts, strict=True)
    chosen = [generator.choice(np.flatnonzero(mapped == kind), count, replace=False) for kind, count in pairs]
    return np.concatenate(chosen), Points(np.repeat(np.arange(len(kinds)), counts), np.ones(counts.sum())), strata


def intervals(generator: np.random.Generator, accuracy: float, total: int) -> Iterator[tuple[str, float, Share]]:
    """One simulated map: the estimator's name, the true share and the estimated one of every class."""
    truth, mapped, probability = simulate_map(generator, int(generator.choice([2, 4, 6])), accuracy)
    chosen, points, strata = draw(generator, mapped, total)
    clicks = generator.choice(PIXELS, len(chosen), replace=False)
    everywhere = Points(np.zeros(len(clicks), int), np.ones(len(clicks))), Strata(np.array([1.0]), np.array([PIXELS]))
    for k in range(probability.shape[1]):
        true_share = float((truth == k).mean())
        means = np.array([probability[mapped == kind, k].mean() for kind in np.unique(mapped)])
        extra = Auxiliary(probability[chosen, k], means)
        yield "stratified", true_share, share(truth[chosen] == k, points, strata)
        yield "with probabilities", true_share, share(truth[chosen] == k, points, strata, extra)
        yield "clicks alone", true_share, share(truth[clicks] == k, *everywhere)


@dataclass(frozen=True)
class Config:
    """Count how often intervals hold."""

    maps: int = 1000
    """Simulated maps."""
    accuracy: float | None = None
    """Of every map; default: anything in 0.70-0.98."""
    seed: int = 0
    """Of the simulation."""


def main() -> None:
    """Simulate, count, write the table."""
    config = tyro.cli(Config)
    generator = np.random.default_rng(config.seed)
    found: dict[tuple[str, int], list[tuple[bool, float]]] = {}
    outside = 0
    for number in range(config.maps):
        total = TOTALS[number % len(TOTALS)]
        accuracy = config.accuracy or generator.uniform(0.7, 0.98)
        for name, true_share, one in intervals(generator, accuracy, total):
            entry = one.low <= true_share <= one.high, one.high - one.low
            for key in ((name, total), (name, 0)):
                found.setdefault(key, []).append(entry)
            outside += not 0 <= one.low <= one.value <= one.high <= 1
    rows = []
    for (name, total), entries in sorted(found.items()):
        held, width = np.mean(entries, axis=0)
        rows.append(
            {
                "estimator": name,
                "points": total or "all",
                "intervals": len(entries),
                "hold the truth": f"{held:.1%}",
                "mean width": f"{width:.3f}",
                "width / clicks alone": f"{width / np.mean([w for _, w in found['clicks alone', total]]):.2f}",
            }
        )
    kind = f"{config.accuracy:g}" if config.accuracy else "0.70-0.98"
    note = f"{config.maps} simulated maps, map accuracy {kind}, seed {config.seed}; {outside} intervals leave [0, area]"
    write_table(Path(__file__).with_name(f"area_intervals{f'_{kind}' if config.accuracy else ''}.py"), rows, note)


if __name__ == "__main__":
    main()
