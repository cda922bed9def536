"""How fast generated towns are painted, beside reading the pictures from PNG: ``python benchmarks/scene_rendering.py``.

One process and one thread; processor seconds, since on a busy machine they say more than the clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch

from benchmarks.tables import processor, write_table
from common.scenes.aerial import render_scene

PIXELS = 6e6
"""Painted of each size and resolution."""


def main() -> None:
    """Paint towns of any region in windows of several sizes, each a town of its own, and write the table."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    render_scene(0, 1024, 1024, 0.35)  # makes the noise that all share
    rows = []
    for side in (256, 512, 1024):
        for gsd in (0.1, 0.2, 0.35):
            count, start = round(PIXELS / side**2), time.process_time()
            towns = [render_scene(seed, side, side, gsd, undefined=False, varied=True)[0] for seed in range(count)]
            painting = time.process_time() - start
            files = [cv2.imencode(".png", town)[1] for town in towns]
            start = time.process_time()
            for file in files:
                assert cv2.imdecode(file, cv2.IMREAD_COLOR).dtype == np.uint8
            reading = time.process_time() - start
            rows.append(
                {
                    "side, px": side,
                    "m per px": gsd,
                    "Mpx/s": f"{count * side**2 / painting / 1e6:.1f}",
                    "times as long as reading it": f"{painting / reading:.1f}",
                }
            )
    write_table(Path(__file__), rows, processor())


if __name__ == "__main__":
    main()
