"""Generated HeLa time-lapse scenes: fluorescent nuclei that wander, touch and divide, with the exact truth beside them.

The camera is that of the challenge's Fluo-N2DL-HeLa frames: 12 bits above an offset of 32 768, a background of some 300
counts, nuclei on average 30 to 1200 counts brighter, bars at mitosis that nearly saturate, row noise correlated along
x. Everything follows from the seed.

``nuclei.Colony`` moves nuclei over a field larger than the frame, so that they come and go at its border; ``_draw``
renders each one in its bounding box and notes its pixels, and ``_expose`` turns the light into camera counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from common.files import atomic_folder
from hela_nuclei.scenes.nuclei import TEXTURE_SIZE, Colony, Floats, Nucleus, look_of

Labels = NDArray[np.uint16]
Track = tuple[int, int, int, int]

OFFSET = 32768
"""Count of the camera without any light."""
FULL_WELL = 4095
"""The camera's range above the offset; brighter light saturates."""
BORDER = 25
"""Nuclei wholly within this band at the frame's border are left out of the truth on disk, as in the challenge."""
SMALLEST = 10
"""A nucleus of which fewer pixels are seen is not annotated."""
RIM = 0.8
"""Pixels of a nucleus' faint edge that annotators leave out."""
GT_SEG_EVERY = 4
"""One frame in this many gets a gold-truth segmentation."""


@dataclass(frozen=True)
class Microscope:
    """How one sequence was taken; the default is the challenge's instrument."""

    focus: float
    """Standard deviation of the optics' blur, pixels."""
    zoom: float = 1.0
    """Size of the nuclei relative to the challenge's."""
    light: float = 1.0
    """Brightness of the nuclei relative to the challenge's."""
    noise: float = 1.0
    """Likewise of the camera's noise."""
    unevenness: float = 1.0
    """Likewise of the lamp and of the dish's glow."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Microscope:
        """Draw one at random: around the challenge's, now and then far from it."""
        spread = float(rng.choice([0.4, 1.0], p=[0.6, 0.4]))
        zoom, light, noise, unevenness = np.exp(spread * rng.normal(0, (0.28, 0.35, 0.35, 0.6)))
        zoom = float(np.clip(zoom, 0.55, 2.0))
        return cls(float(rng.uniform(0.8, 1.7)) * max(zoom, 0.8), zoom, float(light), float(noise), float(unevenness))


def _chromatin(rng: np.random.Generator) -> Floats:
    """A periodic texture of mean 0 and standard deviation 1 that all nuclei take their grain from."""
    fine, coarse = (
        ndimage.gaussian_filter(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE)), s, mode="wrap") for s in (0.9, 3.0)
    )
    texture: Floats = (0.95 * fine / fine.std() + 0.3 * coarse / coarse.std()).astype(np.float32)
    return texture


def _draw(
    nucleus: Nucleus,
    zoom: float,
    chromatin: Floats,
    light: Floats,
    depth: Floats,
    owner: NDArray[np.int32],
    number: int,
) -> None:
    """Add one nucleus to the frame.

    Args:
        nucleus: what to draw.
        zoom: pixels of the frame per unit of the colony.
        chromatin: the shared texture.
        light: (H, W) counts above the background; the brighter of two nuclei wins.
        depth: (H, W) how far out, 0 center to 1 outline, each pixel is in the nucleus that owns it; the more central
            one wins.
        owner: (H, W) ``number`` of the nucleus each pixel belongs to.
        number: positive number of this nucleus.
    """
    height, width = light.shape
    look, y, x = look_of(nucleus), zoom * nucleus.y, zoom * nucleus.x
    reach = 1.25 * zoom * max(look.along, look.across)
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    if top >= bottom or left >= right:
        return
    dy = (np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)) / np.float32(zoom)
    dx = (np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)) / np.float32(zoom)
    sine, cosine = np.float32(np.sin(nucleus.angle)), np.float32(np.cos(nucleus.angle))
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    along, across = u / np.float32(look.along), v / np.float32(look.across)

    polar = np.arctan2(across, along)
    outline = np.ones_like(polar)
    for order, (amplitude, phase) in enumerate(nucleus.shape.ripple, start=3):
        outline += amplitude * 2 / look.power * np.cos(order * polar + phase)
    out = (np.abs(along) ** look.power + np.abs(across) ** look.power) ** np.float32(1 / look.power) / outline

    # The annotated outline runs some 0.7 px outside of where the blurred edge has fallen to the half.
    thin = zoom * min(look.along, look.across)
    edge = np.clip((1 - out) * np.float32(thin / 2.6) - np.float32(0.02), 0, 1)
    dome = 0.87 + 0.13 * np.sqrt(np.clip(1 - out**2, 0, 1))
    rows = (v.round().astype(np.int32) + nucleus.shape.grain[0]) % TEXTURE_SIZE
    columns = (u.round().astype(np.int32) + nucleus.shape.grain[1]) % TEXTURE_SIZE
    texture = 1 + np.float32(0.22 * look.texture) * chromatin[rows, columns]
    for spot_u, spot_v, dip in nucleus.shape.nucleoli:
        texture -= look.texture * dip * np.exp(-((along - spot_u) ** 2 + (across - spot_v) ** 2) / np.float32(0.015))
    box = (slice(top, bottom), slice(left, right))
    np.maximum(light[box], np.float32(look.light) * edge * dome * np.clip(texture, 0.2, 2), out=light[box])
    mine = (out <= 1 - RIM / thin) & (out < depth[box])
    depth[box][mine] = out[mine]
    owner[box][mine] = number


def _tidy(owner: NDArray[np.int32], count: int) -> None:
    """Leave each nucleus its largest 4-connected piece, and none if that is smaller than ``SMALLEST`` pixels."""
    for number, box in enumerate(ndimage.find_objects(owner, count), start=1):
        if box is None:
            continue
        pieces, found = ndimage.label(owner[box] == number)
        areas = np.bincount(pieces.ravel(), minlength=found + 1)
        areas[0] = 0
        keep = int(areas.argmax()) if areas.max() >= SMALLEST else -1
        if found > 1 or keep < 0:
            owner[box][(pieces > 0) & (pieces != keep)] = 0


def _illumination(rng: np.random.Generator, height: int, width: int, unevenness: float) -> tuple[Floats, Floats]:
    """The lamp's unevenness as a factor near 1, and the glow of the empty dish in counts with a few dark smudges."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    center_y, center_x = rng.uniform(-0.5, 0.5, 2)
    falloff = unevenness * ((y - center_y) ** 2 + (x - center_x) ** 2)
    glow = rng.uniform(300, 312) - rng.uniform(7, 13) * falloff
    for _ in range(rng.poisson(height * width / 130_000)):
        row, column, size = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 9)
        rows, columns = np.ogrid[:height, :width]
        glow -= rng.uniform(8, 16) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))
    return np.clip(1 - 0.06 * falloff, 0.4, 1).astype(np.float32), glow.astype(np.float32)


def _expose(
    rng: np.random.Generator, light: Floats, lamp: Floats, glow: Floats, microscope: Microscope
) -> NDArray[np.uint16]:
    """Blur by the optics, add shot and read noise (correlated along x as the camera's is), and digitize."""
    light = light * np.float32(microscope.light)
    sharp = ndimage.gaussian_filter(light * lamp, microscope.focus, truncate=3)
    stray = ndimage.gaussian_filter(light, 9, truncate=2)
    counts = 0.95 * sharp + 0.05 * stray + glow
    noise = rng.standard_normal(light.shape, dtype=np.float32) * (microscope.noise * np.sqrt(84 + 0.33 * sharp))
    noise = ndimage.correlate1d(noise, np.array([0.4, 1.0, 0.4]) / 1.32**0.5, axis=1)
    image: NDArray[np.uint16] = (OFFSET + np.clip(np.rint(counts + noise), 0, FULL_WELL)).astype(np.uint16)
    return image


def _specks(rng: np.random.Generator, light: Floats, nuclei: int) -> None:
    """Add bits of debris, too small to be nuclei and not annotated."""
    height, width = light.shape
    for _ in range(rng.poisson(nuclei / 30)):
        row, column = int(rng.integers(1, height - 1)), int(rng.integers(1, width - 1))
        bit = rng.uniform(60, 500) * rng.uniform(0.2, 1, (3, 3))
        light[row - 1 : row + 2, column - 1 : column + 2] += bit.astype(np.float32)


def render_sequence(
    seed: int | np.random.Generator,
    frames: int,
    height: int,
    width: int,
    nuclei: int,
    microscope: Microscope | None = None,
) -> tuple[NDArray[np.uint16], Labels, list[Track]]:
    """Render one sequence and its truth.

    Args:
        seed: seed or generator; the same seed gives the same sequence.
        frames: number of frames T, about half an hour apart: a nucleus moves some 2 px and divides every 45 frames.
        height: of a frame, pixels.
        width: of a frame, pixels.
        nuclei: how many are in view in the first frame, on average. The challenge's frames have 5 to 30 in 256 x
            256 px.
        microscope: how it is taken; default the challenge's, a little sharper or softer.

    Returns:
        images (T, H, W) uint16; labels (T, H, W) uint16, 0 = background, otherwise track ids, every object
        4-connected; tracks as (id, first frame, last frame, parent or 0). A nucleus that leaves the frame and comes
        back is a new track.

    Raises:
        ValueError: a number makes no sense.
    """
    if frames < 1 or min(height, width) < 16 or nuclei < 0:
        raise ValueError(
            f"frames {frames}, height {height}, width {width}, nuclei {nuclei}: "
            "a scene needs a frame or more of at least 16 x 16 pixels, and nuclei cannot be negative"
        )
    rng = np.random.default_rng(seed)
    zoom = microscope.zoom if microscope else 1.0
    colony, chromatin = Colony(rng, height / zoom, width / zoom, nuclei), _chromatin(rng)
    lamp, glow = _illumination(rng, height, width, microscope.unevenness if microscope else 1.0)
    microscope = microscope or Microscope(focus=float(rng.uniform(1.05, 1.45)))
    images = np.zeros((frames, height, width), dtype=np.uint16)
    labels = np.zeros((frames, height, width), dtype=np.uint16)
    tracks: dict[int, list[int]] = {}
    for frame in range(frames):
        if frame:
            colony.step()
        light = np.zeros((height, width), dtype=np.float32)
        depth = np.full((height, width), np.inf, dtype=np.float32)
        owner = np.zeros((height, width), dtype=np.int32)
        for number, nucleus in enumerate(colony.nuclei, start=1):
            _draw(nucleus, zoom, chromatin, light, depth, owner, number)
        _tidy(owner, len(colony.nuclei))
        _specks(rng, light, nuclei)
        images[frame] = _expose(rng, light, lamp, glow, microscope)
        labels[frame] = _name(owner, colony.nuclei, tracks, frame)
    return images, labels, [(name, begin, end, parent) for name, (begin, end, parent) in tracks.items()]


def _name(owner: NDArray[np.int32], nuclei: list[Nucleus], tracks: dict[int, list[int]], frame: int) -> Labels:
    """Turn numbers into track ids, opening a track for every nucleus that was not seen in the frame before."""
    seen = np.bincount(owner.ravel(), minlength=len(nuclei) + 1) > 0
    names = np.zeros(len(nuclei) + 1, dtype=np.uint16)
    for number, nucleus in enumerate(nuclei, start=1):
        if not seen[number]:
            nucleus.track = 0
            continue
        if not nucleus.track:
            nucleus.track = len(tracks) + 1
            tracks[nucleus.track] = [frame, frame, nucleus.mother if nucleus.age == 0 else 0]
        tracks[nucleus.track][1] = frame
        names[number] = nucleus.track
    return names[owner]


def field_of_interest(labels: Labels, tracks: list[Track], border: int = BORDER) -> tuple[Labels, list[Track]]:
    """Leave out the nuclei wholly within ``border`` pixels of the frame's border, as the challenge's truth does.

    Args:
        labels: (T, H, W) uint16 track ids.
        tracks: as (id, first frame, last frame, parent or 0).
        border: width of the band, pixels.

    Returns:
        What is left of both. A nucleus that goes out of the field and comes back gets a new id, for a track has no
        gaps.
    """
    height, width = labels.shape[1:]
    parents = {name: parent for name, _, _, parent in tracks}
    left: dict[int, list[int]] = {}
    result = np.zeros_like(labels)
    before: dict[int, int] = {}  # old id -> new id in the frame before
    for frame, image in enumerate(labels):
        now: dict[int, int] = {}
        names = np.zeros(int(image.max()) + 1, dtype=np.uint16)
        for old in np.unique(image[border : max(height - border, 0), border : max(width - border, 0)]).tolist():
            if old:
                now[old] = names[old] = before.get(old, len(left) + 1)
                left.setdefault(now[old], [frame, frame, before.get(parents[old], 0)])[1] = frame
        result[frame] = names[image]
        before = now
    return result, [(name, begin, end, parent) for name, (begin, end, parent) in left.items()]


def write_challenge(
    root: Path,
    *,
    sequences: int = 2,
    frames: int = 12,
    height: int = 256,
    width: int = 256,
    nuclei: int = 24,
    seed: int = 0,
) -> None:
    """Write generated sequences in the layout of the Cell Tracking Challenge.

    ``01/t000.tif`` the frames, ``01_ST/SEG/man_seg000.tif`` the nuclei of each, ``01_GT/TRA/man_track000.tif`` the
    same with ``man_track.txt``, ``01_GT/SEG/man_seg000.tif`` for one frame in four; ``02`` and so on are denser. The
    ids in all of them are track ids, and nuclei wholly within 25 px of the border are left out. The folder appears
    when it is complete: it is written under a temporary name beside ``root``, then renamed.

    Args:
        root: folder to create; it may exist if it is empty.
        sequences: number of sequences.
        frames: of each sequence.
        height: of a frame, pixels.
        width: of a frame, pixels.
        nuclei: in view on average over the sequences.
        seed: the same seed gives the same files.

    Raises:
        ValueError: ``root`` holds something already, or a number makes no sense.
    """
    with atomic_folder(root) as folder:
        for number in range(1, sequences + 1):
            density = 2 * number / (sequences + 1)
            rng = np.random.default_rng((seed, number))
            rendered = render_sequence(rng, frames, height, width, round(density * nuclei))
            _write_sequence(folder, f"{number:02d}", *rendered)


def _write_sequence(root: Path, name: str, images: NDArray[np.uint16], labels: Labels, tracks: list[Track]) -> None:
    """Write the frames and the three kinds of truth of one sequence."""
    labels, tracks = field_of_interest(labels, tracks)
    silver, gold, markers = (root / f"{name}_{folder}" for folder in ("ST/SEG", "GT/SEG", "GT/TRA"))
    for folder in (root / name, silver, gold, markers):
        folder.mkdir(parents=True)
    for frame, (image, label) in enumerate(zip(images, labels, strict=True)):
        tifffile.imwrite(root / name / f"t{frame:03d}.tif", image)
        tifffile.imwrite(silver / f"man_seg{frame:03d}.tif", label)
        tifffile.imwrite(markers / f"man_track{frame:03d}.tif", label)
        if frame % GT_SEG_EVERY == 0:
            tifffile.imwrite(gold / f"man_seg{frame:03d}.tif", label)
    (markers / "man_track.txt").write_text(
        "".join(f"{label} {begin} {end} {parent}\n" for label, begin, end, parent in tracks)
    )
