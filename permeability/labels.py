"""The two classes of the ground, and what the values of a mask mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.labels import IGNORE

CLASSES = ["No permeable", "Permeable"]
PALETTE = {0: (211, 211, 211), 1: (0, 128, 0)}


def to_classes(values: NDArray[Any], nodata: float | None) -> NDArray[np.uint8]:
    """Values of a mask -> 0 non-permeable, 1 permeable, 255 ignored (255 itself and declared nodata).

    A mask that declares 0 or 1 as its nodata means the class by it: everything else would be one class alone.

    Args:
        values: (H, W) of any number type.
        nodata: declared nodata of the file.

    Raises:
        ValueError: another value occurs; names it and how often.
    """
    if nodata is not None and nodata not in (0, 1, IGNORE):
        blank = np.isnan(values) if np.isnan(nodata) else values == nodata
        values = np.where(blank, IGNORE, values)
    if values.dtype == np.uint8 and (values + np.uint8(1)).max(initial=0) <= 2:  # 255 + 1 is 0: two quick passes
        return values
    strange = (values != 0) & (values != 1) & (values != IGNORE)
    if strange.any():
        found, counts = np.unique(values[strange], return_counts=True)
        listed = ", ".join(f"{value:g} ({count} pixels)" for value, count in list(zip(found, counts, strict=True))[:5])
        raise ValueError(f"has the values {listed}; a mask has 1 = permeable, 0 = non-permeable, 255 = ignored")
    return values.astype(np.uint8, copy=False)
