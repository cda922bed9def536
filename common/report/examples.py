"""Examples of a run for people: ordinary, best and worst samples, each with a map of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.images.display import RGB, Palette, Pixels, colorize
from common.labels import IGNORE
from common.metrics.split_scores import ImageScore

TWO_CLASSES: Mapping[str, RGB] = {"hit": (0, 158, 115), "false": (213, 94, 0), "missed": (86, 180, 233)}
"""Of the foreground: found; found where there is none; not found."""
MORE_CLASSES: Mapping[str, RGB] = {"right": (70, 76, 82), "wrong": (213, 94, 0)}
NOTHING: RGB = (16, 18, 20)
"""Two classes: background in truth and prediction."""


def error_map(truth: NDArray[Any], prediction: NDArray[Any], classes: int) -> Pixels:
    """Where a prediction is right and where not, in the colors of `error_legend`; what is ignored is hatched.

    Args:
        truth: (H, W) class indices, 255 = ignored.
        prediction: (H, W) class indices.
        classes: two = hit, false and missed foreground (index 1); more = right and wrong.

    Returns:
        (H, W, 3) uint8.
    """
    colors = list(error_legend(classes).values())
    if classes == 2:
        kinds = np.select([(truth == 1) & (prediction == 1), prediction == 1, truth == 1], [1, 2, 3], 0)
    else:
        kinds = np.where(truth == prediction, 1, 2)
    kinds = np.where((truth == IGNORE) | (prediction == IGNORE), IGNORE, kinds)
    return colorize(kinds, dict(enumerate([NOTHING, *colors])))


def error_legend(classes: int) -> Mapping[str, RGB]:
    """What the colors of `error_map` mean."""
    return TWO_CLASSES if classes == 2 else MORE_CLASSES


def choose(scored: Sequence[ImageScore], count: int) -> dict[str, list[ImageScore]]:
    """At most ``count`` ordinary, best and worst samples each, none twice.

    Samples whose truth shows one class alone say little; they are taken only where too few others exist.
    """
    ranked = sorted((one for one in scored if one.is_mixed), key=lambda one: one.miou)
    if len(ranked) < min(3, len(scored)):
        ranked = sorted(scored, key=lambda one: one.miou)
    each = min(count, -(-len(ranked) // 3))
    best, rest = ranked[len(ranked) - each :][::-1], ranked[: len(ranked) - each]
    worst, rest = rest[:each], rest[each:]
    first = max(0, len(rest) - each) // 2
    groups = {"ordinary": rest[first : first + each][::-1], "best": best, "worst": worst}
    return {name: group for name, group in groups.items() if group}


def panels(image: Pixels, maps: Mapping[str, NDArray[Any]], palette: Palette) -> list[tuple[str, Pixels]]:
    """Titled pictures of one sample: image, class maps (``truth`` and ``prediction`` among them), errors."""
    shown = [("input", image), *((title, colorize(mask, palette)) for title, mask in maps.items())]
    return [*shown, ("errors", error_map(maps["truth"], maps["prediction"], len(palette)))]
