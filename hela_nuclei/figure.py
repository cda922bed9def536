"""One picture to judge a prediction by: frame, probability with a color bar, mask over the frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.images.display import overlay, stretch
from common.report.plots import INK, save
from hela_nuclei.task import TASK

PANEL_INCHES = 5.0


def write_figure(
    path: Path,
    frame: NDArray[np.generic],
    probability: NDArray[np.float32],
    mask: NDArray[np.bool_],
    threshold: float,
) -> None:
    """Write the picture.

    Args:
        path: the PNG.
        frame: (H, W), any number type; shown with stretched contrast.
        probability: (H, W), P(nucleus).
        mask: (H, W), where it is at least the threshold.
        threshold: named in the title, and marked at the color bar.
    """
    picture = stretch(frame)
    height = PANEL_INCHES * frame.shape[0] / frame.shape[1]
    figure = Figure(figsize=(3 * PANEL_INCHES + 1, height + 0.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    both = overlay(picture, mask.astype(np.uint8), {1: TASK.palette[1]})
    titles = ("frame", "P(nucleus)", f"mask, P at least {threshold:.3g}")
    for axes, title, shown in zip(figure.subplots(1, 3), titles, (picture, probability, both), strict=True):
        drawn = axes.imshow(shown, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, fontsize=12, color=INK)
        if shown is probability:
            bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
            bar.ax.axhline(threshold, color="white", linewidth=2)
            bar.ax.tick_params(colors=INK)
    save(figure, path)
