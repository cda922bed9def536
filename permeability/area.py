"""Areas and accuracies from a map and a judged probability sample, with intervals that hold for small samples.

The sample is stratified by the map's classes (and zones). A share is estimated in every stratum and weighted with the
stratum's known area (Olofsson et al. 2014, Remote Sensing of Environment 148, equations 8 to 11), which removes the
bias that every error of the map gives to a count of its pixels. Where the map has probabilities, the combined
regression estimator (Cochran 1977, section 7.11) uses them too: it corrects by what the sample missed of them.

Intervals lie inside [0, 1]: a normal interval on the logit scale with Student's t. So that a stratum without an error
in the sample is not taken for one without errors, each stratum's share gets `PSEUDO` hits and misses added in the
variance and the middle of the interval; the estimate itself stays the unbiased one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
PSEUDO = 0.25
"""Hits and misses added to a stratum; benchmarks/area_intervals.py counts how often intervals then hold."""
NORMAL = 1.96
"""Of the half-width that the literature reports, beside the interval."""


@dataclass(frozen=True)
class Share:
    """An estimated share of an area, 0-1."""

    value: float
    """Unbiased."""
    error: float
    """Standard error, as in the literature; 0 if the sample shows no variation."""
    low: float
    high: float
    """Interval of 95 %, inside [0, 1]."""


@dataclass(frozen=True)
class Strata:
    """What is known of every stratum before anything is judged; arrays of length H."""

    area: Floats
    """Of all its pixels; any unit."""
    pixels: Ints

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Strata:
        """Some of them."""
        return Strata(self.area[chosen], self.pixels[chosen])


@dataclass(frozen=True)
class Points:
    """Judged points; arrays of length n."""

    stratum: Ints
    """Index of each point's stratum."""
    area: Floats
    """Of the pixel: equal, but in geographic coordinates."""

    def of(self, strata: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Points]:
        """Which points lie in the chosen strata, and those points with the strata counted anew."""
        here = strata[self.stratum]
        return here, Points((np.cumsum(strata) - 1)[self.stratum[here]], self.area[here])


@dataclass(frozen=True)
class Auxiliary:
    """What the map says of the quantity that is judged, everywhere: a probability."""

    at_points: Floats
    """(n,)."""
    means: Floats
    """(H,) mean over each stratum's area."""


def share(hits: NDArray[np.bool_], points: Points, strata: Strata, auxiliary: Auxiliary | None = None) -> Share:
    """Share of the strata's area for which ``hits`` is true.

    Args:
        hits: (n,) whether the judged point counts.
        points: their strata and areas.
        strata: all that the points were drawn from.
        auxiliary: probabilities, for the regression estimator.

    Raises:
        ValueError: a stratum has fewer than two points, and more pixels than that.
    """
    values, weight = hits.astype(np.float64), strata.area / strata.area.sum()
    means, variances, count = _by_stratum(values, points, strata)
    value, variance = float(weight @ means), float(weight**2 @ variances)
    census = count == strata.pixels
    added = np.where(census, 0.0, PSEUDO)
    shrunk = (means * count + added) / (count + 2 * added)
    middle = float(weight @ shrunk)
    spread = float(weight**2 @ np.where(census, 0.0, shrunk * (1 - shrunk) / (count + 2 * added)))
    if auxiliary is not None and variance > 0:
        correction, ratio = _regression(values, points, strata, auxiliary, variance)
        value, middle = value + correction, middle + correction
        variance, spread = variance * ratio, spread * ratio
    value = min(max(value, 0.0), 1.0)
    low, high = logit_interval(middle, spread, len(hits) - len(strata.area))
    return Share(value, float(np.sqrt(variance)), min(low, value), max(high, value))


def _by_stratum(values: Floats, points: Points, strata: Strata) -> tuple[Floats, Floats, Ints]:
    """Mean of each stratum, variance of that mean, and number of points; means are weighted by the pixels' areas."""
    size = len(strata.area)
    count = np.bincount(points.stratum, minlength=size)
    if ((count < 2) & (count < strata.pixels)).any():
        poor = int(np.flatnonzero((count < 2) & (count < strata.pixels))[0])
        raise ValueError(f"stratum {poor + 1} has {count[poor]} judged points; at least two are needed in each")
    total = np.bincount(points.stratum, points.area, size)
    means = np.bincount(points.stratum, points.area * values, size) / total
    relative = points.area * (count / total)[points.stratum]
    squares = np.bincount(points.stratum, (relative * (values - means[points.stratum])) ** 2, size)
    return means, np.where(count == strata.pixels, 0.0, squares / np.maximum(count * (count - 1), 1)), count


def _regression(
    values: Floats, points: Points, strata: Strata, auxiliary: Auxiliary, variance: float
) -> tuple[float, float]:
    """What the probabilities add to the stratified estimate, and the share of its variance that is left."""
    weight = strata.area / strata.area.sum()
    guesses = auxiliary.at_points
    expected, spread, count = _by_stratum(guesses, points, strata)
    if not weight**2 @ spread > 0:
        return 0.0, 1.0
    both = _by_stratum(values + guesses, points, strata)[1]
    apart = _by_stratum(values - guesses, points, strata)[1]
    slope = float(weight**2 @ (both - apart)) / 4 / float(weight**2 @ spread)
    left = float(weight**2 @ _by_stratum(values - slope * guesses, points, strata)[1])
    free = max(int(count.sum()) - len(count), 2)
    ratio = left / variance * free / (free - 1)
    correction = slope * float(weight @ (auxiliary.means - expected))
    return (correction, ratio) if ratio < 1 else (0.0, 1.0)


def ratio(hits: NDArray[np.bool_], base: NDArray[np.bool_], points: Points, strata: Strata) -> Share | None:
    """Share of the area of ``base`` for which ``hits``, a part of it, is true; None = ``base`` has no point.

    Producer's accuracy is of this kind: the area of the truth is itself estimated.
    """
    weight = strata.area / strata.area.sum()
    of = float(weight @ _by_stratum(base.astype(np.float64), points, strata)[0])
    if of == 0:
        return None
    value = float(weight @ _by_stratum(hits.astype(np.float64), points, strata)[0]) / of
    residual = (hits - value * base) / of
    variance = float(weight**2 @ _by_stratum(residual, points, strata)[1])
    seen = int(base.sum())
    middle = (value * seen + PSEUDO) / (seen + 2 * PSEUDO)
    spread = variance
    if value in (0.0, 1.0):  # nothing varied in the sample, which does not make it certain
        spread = max(spread, middle * (1 - middle) / (seen + 2 * PSEUDO))
    low, high = logit_interval(middle, spread, seen - 1)
    return Share(value, float(np.sqrt(variance)), min(low, value), max(high, value))


def logit_interval(share: float, variance: float, freedom: int) -> tuple[float, float]:
    """Interval of 95 % of a share, normal on the logit scale: always inside [0, 1]."""
    if variance <= 0 or not 0 < share < 1:
        share = min(max(share, 0.0), 1.0)
        return share, share
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, max(freedom, 1)) * np.sqrt(variance) / (share * (1 - share))
    middle = np.log(share / (1 - share))
    low, high = 1 / (1 + np.exp(-np.clip([middle - reach, middle + reach], -700, 700)))
    return float(low), float(high)


def allocate(strata: Strata, spread: Floats, total: int, least: int) -> Ints:
    """Points for each stratum: in proportion to its area times its spread (Neyman 1934), at least ``least`` each.

    Args:
        strata: where to draw.
        spread: (H,) expected standard deviation of what is judged.
        total: points in all; more where ``least`` for each stratum takes more.
        least: fewest points of a stratum; all its pixels, if it has no more.
    """
    least_each = np.minimum(least, strata.pixels)
    want = strata.area * np.maximum(spread, 1e-9)
    fixed = np.zeros(len(want), bool)
    result = least_each.astype(np.float64)
    while not fixed.all():  # strata that would get less than the least get that, the others share the rest
        rest = max(total - least_each[fixed].sum(), 0)
        offer = rest * want / want[~fixed].sum()
        short = ~fixed & (offer < least_each)
        if not short.any():
            result[~fixed] = offer[~fixed]
            break
        fixed |= short
    return np.minimum(np.ceil(result - 1e-9).astype(np.int64), strata.pixels)


def points_needed(strata: Strata, spread: Floats, half_width: float) -> int:
    """Points that, drawn in the best proportions, give an interval of ± ``half_width`` (a share of the area)."""
    weight = strata.area / strata.area.sum()
    return int(np.ceil((NORMAL * float(weight @ spread) / half_width) ** 2))
