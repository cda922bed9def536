"""Pictures of nuclei for people: outlines on the frame, and frame beside prediction."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from common.images.display import COLORS, Pixels, stretch

CAPTION = 24
"""Height of the line above a video's frames, pixels."""
# Neighboring ids take different colors; the palette's grey would not show on a frame.
OUTLINES = np.array([tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in COLORS[:7]], np.uint8)


def outlines(frame: NDArray[np.generic], labels: NDArray[np.integer]) -> Pixels:
    """The frame, contrast stretched, with each nucleus' outline in a color of its id; (H, W, 3) uint8."""
    picture = stretch(frame)
    edge = find_boundaries(labels, mode="inner")
    picture[edge] = OUTLINES[labels[edge] % len(OUTLINES)]
    return picture


def viridis(mask: NDArray[np.bool_]) -> Pixels:
    """A mask in the two ends of the viridis colors; (H, W, 3) uint8 RGB."""
    colored = cv2.applyColorMap((mask * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(colored[..., ::-1])


def captioned(picture: Pixels, text: str) -> Pixels:
    """A picture (H, W, 3) below a line of text on black, `CAPTION` pixels high; a longer line is cut."""
    line = Image.new("RGB", (picture.shape[1], CAPTION))
    ImageDraw.Draw(line).text((6, 4), text, font=ImageFont.load_default(14), fill=(255, 255, 255))
    return np.vstack([np.asarray(line), picture])


def contact_sheet(pictures: Sequence[Pixels], columns: int = 3) -> Pixels:
    """Pictures of one size in rows of ``columns`` with thin black lines between; a single one stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    framed = [np.pad(p, ((0, 2), (0, 2), (0, 0))) for p in padded]
    return np.vstack([np.hstack(framed[i : i + columns]) for i in range(0, len(framed), columns)])
