"""Orthophotos and masks joined by their georeference: where they lie, what they share, how they are split.

Names mean nothing here. Every mask is compared with an index of the orthophotos' outlines, and each overlap becomes a
`Site`. Ground that two orthophotos show belongs to the first of them, so that no pixel of a mask counts twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.command.progress import progress
from common.data.inputs import MASK_ENDING, OUTPUT_ENDINGS, find_images, images_in, natural_key
from common.data.labeled import LabeledImage, Sample, require_two_classes, size_row, tally
from common.data.pairs import Facts
from common.data.splits import PARTS, Split, split_by_folders, split_groups
from common.images import windows
from common.images.grids import Grid
from common.images.ranges import ValueRanges
from common.images.windows import Window, only_core
from common.labels import IGNORE
from permeability.joining import GroundIndex, Shared, share
from permeability.labels import CLASSES
from permeability.site import Site

IMAGES, MASKS = Path("INSUMOS/ORTOFOTOS"), Path("DATA/OUTPUT/MASCARAS")
NO_MASKS = tuple(ending for ending in OUTPUT_ENDINGS if ending != MASK_ENDING)
STRIP = 8 << 20
"""Pixels looked at at a time."""
KNOWN_SPOTS = 4000
"""Pixels of each class remembered per site, for balanced windows."""
PROBE, PROBES = 64, 5
"""Side of the windows that are read of an orthophoto at the start, and how many along each of its sides."""


# Finding


@dataclass(frozen=True)
class Mask:
    """A mask file and the part of the data its folder names, ``""`` if none."""

    path: Path
    part: str = ""

    @property
    def id(self) -> str:
        """Its name after its part's."""
        return f"{self.part}/{self.path.stem}" if self.part else self.path.stem


def find_files(root: Path | None, images: Path | None, labels: Path | None) -> tuple[list[Path], list[Mask]]:
    """Orthophotos and masks of a data folder, or of two folders.

    Args:
        root: folder with ``INSUMOS/ORTOFOTOS`` and ``DATA/OUTPUT/MASCARAS``.
        images: instead: folder of orthophotos...
        labels: ...and folder of masks, with or without ``train``, ``val`` and ``test`` in it.

    Raises:
        FileNotFoundError, ValueError: a folder does not exist or holds no image, or two masks have one name.
    """
    if images is None or labels is None:
        assert root is not None
        if not root.is_dir():
            raise FileNotFoundError(f"--data-root {root} is not a folder")
        images, labels = root / IMAGES, root / MASKS
    for folder in (images, labels):
        if not folder.exists():
            raise FileNotFoundError(
                f"{folder} does not exist; a data folder has {IMAGES} and {MASKS}/{{train,val,test}}, "
                "else name two folders with --images and --labels"
            )
    parts = [part for part in PARTS if (labels / part).is_dir() and any((labels / part).iterdir())]
    masks = [Mask(path, part) for part in parts for path in images_in(labels / part, NO_MASKS)]
    masks = masks or [Mask(path) for path in (images_in(labels, NO_MASKS) if labels.is_dir() else [labels])]
    if not masks:
        raise ValueError(f"{labels}: no images found; masks are images in it, or in train, val and test in it")
    first = {mask.id: mask.path for mask in reversed(masks)}
    for mask in masks:
        if first[mask.id] != mask.path:
            raise ValueError(f"{first[mask.id]} and {mask.path} have one name; rename one, or move one elsewhere")
    return find_images([images]), masks


# Joining


@dataclass(frozen=True)
class Join:
    """How files that lie on different grids are dealt with."""

    reproject: bool = False
    """Warp masks of another coordinate system or grid, instead of refusing them."""
    resolution: float = 0.0
    """Read everything at this pixel size, in units of the orthophotos' coordinate system (0 = their own)."""
    ranges: ValueRanges = field(default_factory=ValueRanges)
    """What the orthophotos' values mean."""


def join_sites(photos: Sequence[Path], masks: Sequence[Mask], how: Join) -> tuple[list[Site], list[str], list[str]]:
    """Join orthophotos and masks by the ground they show.

    Returns:
        The sites in the masks' order, a line for each file or pair that cannot be used, and a note for each file
        without a partner.

    Raises:
        ValueError: no mask lies on any orthophoto; names a place of each.
    """
    problems: list[str] = []
    grids = open_grids(photos, problems)
    ground = GroundIndex(grids)
    sites: list[Site] = []
    lonely: list[tuple[Mask, Grid]] = []
    used: set[Path] = set()
    for mask in masks:
        grid = next(iter(open_grids([mask.path], problems)), None)
        if grid is None:
            continue
        found, wrong = join_mask(mask, grid, [grids[i] for i in ground.over(grid)], how)
        if not found and not wrong:
            lonely.append((mask, grid))
        sites += found
        problems += wrong
        used |= {site.image.path for site in found}
    if not sites and lonely and grids:
        raise ValueError(
            f"no orthophoto shows the ground of any of {len(lonely)} mask(s): {lonely[0][1]}, {grids[0]}; "
            "check the coordinate system of both"
        )
    notes = [f"{mask.path}: no orthophoto shows its ground, left out" for mask, _ in lonely]
    idle = [grid.path for grid in grids if grid.path not in used]
    if idle and not problems:
        notes.append(f"{len(idle)} orthophotos without a mask, such as {idle[0]}")
    return sites, problems, notes


def open_grids(paths: Sequence[Path], problems: list[str]) -> list[Grid]:
    """The grids of the files; a line is added to ``problems`` for each that has none."""
    grids = []
    for path in paths:
        try:
            grids.append(Grid.of(path))
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).split()))
    return grids


def join_mask(mask: Mask, grid: Grid, photos: Sequence[Grid], how: Join) -> tuple[list[Site], list[str]]:
    """The sites of one mask, or a line for each orthophoto whose grid it does not fit.

    Neighboring sheets often overlap a little on grids of their own. A mask that fits one of them is no mistake, and
    ground that several show belongs to the one that it fits.
    """
    shared: list[Shared] = []
    problems = []
    for photo in photos:
        try:
            part = share(photo, grid, reproject=how.reproject, resolution=how.resolution)
        except ValueError as error:
            problems.append(str(error))
            continue
        if part is not None:
            shared.append(part)
    shared.sort(key=lambda part: part.offset is None)
    stems = Counter(part.photo.path.stem for part in shared)
    sites = []
    for number, part in enumerate(shared):
        stem = part.photo.path.stem if stems[part.photo.path.stem] == 1 else part.photo.path.name
        name = mask.id if len(shared) == 1 else f"{mask.id}@{stem}"
        site = part.site(name, earlier=[other.photo for other in shared[:number]])
        sites.append(replace(site, ranges=how.ranges))
    return sites, [] if sites else problems


# Looking


@dataclass
class SiteSet:
    """Sites, and what an audit found in them."""

    sites: list[Site] = field(default_factory=list)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By id: pixels of non-permeable, of permeable ground, ignored."""
    spots: dict[str, tuple[NDArray[np.int32], NDArray[np.int32]]] = field(default_factory=dict)
    """By id: (row, column) of some pixels of each class, (n, 2)."""
    pixel: float = 1.0
    """Usual size of an orthophoto's own pixels, in those that it is read at: below 1 where it is read coarser."""

    def part(self, ids: Sequence[str]) -> list[Site]:
        """The sites of these ids."""
        wanted = set(ids)
        return [site for site in self.sites if site.id in wanted]


def inspect_sites(sites: Sequence[Site], channels: int = 3) -> tuple[SiteSet, list[str]]:
    """Look at every mask pixel once, and at the corners and the middle of each orthophoto.

    Returns:
        The usable sites, and a line for each that is not.
    """
    found, problems = SiteSet(), []
    for site in progress(sites, "reading", "site"):
        try:
            found.counts[site.id], found.spots[site.id] = survey(site)
            probe(site, channels)
            found.sites.append(site)
        except ValueError as error:
            problems.append(str(error))
    scales = [site.scale for site in found.sites]
    found.pixel = float(np.median(scales)) if scales else 1.0
    return found, list(dict.fromkeys(problems))


def survey(site: Site) -> tuple[NDArray[np.int64], tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Count the mask's pixels of each class (ignored last) and remember some of each, strip by strip."""
    area = site.window
    counts = np.zeros(3, np.int64)
    spots: tuple[list[NDArray[np.int32]], ...] = ([np.zeros((0, 2), np.int32)], [np.zeros((0, 2), np.int32)])
    rng = np.random.default_rng(0)
    for strip in area.strips(STRIP):
        classes = site.read_classes(strip)
        seen = np.bincount(classes.ravel(), minlength=256)
        counts += [seen[0], seen[1], seen[255]]
        for index in range(2):
            here = np.flatnonzero(classes == index)
            kept = here if len(here) <= KNOWN_SPOTS else here[rng.integers(len(here), size=KNOWN_SPOTS)]
            places = np.column_stack([kept // area.width + strip.row, kept % area.width + area.col])
            spots[index].append(places.astype(np.int32))
    every = [np.concatenate(parts) for parts in spots]
    chosen = [places[rng.permutation(len(places))[:KNOWN_SPOTS]] for places in every]
    return counts, (chosen[0], chosen[1])


def probe(site: Site, channels: int) -> None:
    """Read windows spread over an orthophoto, so that a damaged one and its values are known before training.

    Raises:
        ValueError: it is damaged or has too few bands.
    """
    height, width = site.grid.height, site.grid.width
    side = min(PROBE, height, width)
    rows, cols = (np.unique(np.linspace(0, size - side, PROBES).astype(int)).tolist() for size in (height, width))
    for row, col in product(rows, cols):
        site.look(Window(row, col, side, side), channels)


def audit(found: SiteSet) -> Facts:
    """What was found, as (name, value) rows.

    Raises:
        ValueError: the masks hold one class alone.
    """
    sites = found.sites
    dark, green, ignored = (int(n) for n in sum(found.counts.values(), np.zeros(3, np.int64)))
    require_two_classes(CLASSES, (dark, green), f"the masks of all {len(sites)} sites")
    known, total = dark + green, dark + green + ignored
    area = sum(int(found.counts[s.id][:2].sum()) * abs(s.grid.transform.determinant) for s in sites)
    warped = sum(site.offset is None for site in sites)
    photos, masks = ({source.path for source in some} for some in zip(*((s.image, s.mask) for s in sites), strict=True))
    joined = f"{len(sites)}: {len(photos)} orthophotos, {len(masks)} masks"
    return [
        ("sites", joined + (f", {warped} of the masks warped" if warped else "")),
        size_row((site.window.height, site.window.width) for site in sites),
        ("pixel size", tally(f"{abs(site.grid.transform.determinant) ** 0.5:.4g}" for site in sites)),
        ("coordinate systems", tally((site.grid.crs.to_string()[:40] for site in sites), 3)),
        ("mask pixels", f"{CLASSES[0]} {dark} ({dark / known:.2%}), {CLASSES[1]} {green} ({green / known:.2%})"),
        ("ignored", f"{ignored} ({ignored / total:.2%}) in the masks; nodata of orthophotos besides"),
        ("labeled ground", f"{area:.4g} square units of the coordinate system"),
    ]


# Splitting


def split_sites(sites: Sequence[Site], val_fraction: float, test_fraction: float, seed: int) -> tuple[Split, str]:
    """Split as the masks' folders say, else at random by mask, see `split_by_folders`.

    Raises:
        ValueError: there is nothing to train on, or one mask only.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for site in sites:
        groups[site.id.split("@")[0]].append(site.id)

    def draw(ids: Sequence[str], test: bool) -> tuple[Split, str]:
        known = set(ids)
        some = {name: members for name, members in groups.items() if members[0] in known}
        if len(some) < 2:
            raise ValueError(
                f"{len(some)} usable mask(s) to train on; training needs at least 2, one of them for validation: "
                "divide it with permeability/make_masks.py --split block"
            )
        return split_groups(some, val_fraction, test_fraction if test else 0, seed), "at random by mask"

    ids = [name for members in groups.values() for name in members]
    split, how = split_by_folders(ids, draw)
    return {part: sorted(names, key=natural_key) for part, names in split.items()}, how


# A grid of tiles


@dataclass(frozen=True)
class Tile:
    """A part of a site that is looked at at once: ``core`` is its own, ``window`` has context around it."""

    site: Site
    core: Window
    window: Window

    @property
    def id(self) -> str:
        """The site's id, with row and column where the site has several tiles."""
        return self.site.id if self.core == self.site.window else f"{self.site.id}_{self.core.row}_{self.core.col}"

    def read(self, channels: int = 3) -> LabeledImage:
        """The window; outside of the core the classes are 255."""
        image, classes = self.site.read(self.window, channels)
        return LabeledImage(self.id, image, only_core(classes, self.core, self.window))

    def sample(self, channels: int) -> Sample:
        """The tile, read when it is its turn."""
        return Sample(self.id, self.site.id, partial(self.read, channels))


def plan_tiles(sites: Sequence[Site], side: int, context: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` pixels that cover the sites once, with ``context`` around them, without empty ones."""
    for site in sites:
        for core, window in windows.plan_tiles(site.window, (site.grid.height, site.grid.width), side, context):
            if (site.read_classes(core) != IGNORE).any():
                yield Tile(site, core, window)


def thin(tiles: Sequence[Tile], count: int) -> list[Tile]:
    """``count`` tiles evenly spread over all of them (0 = all)."""
    if not count or count >= len(tiles):
        return list(tiles)
    return [tiles[len(tiles) * i // count] for i in range(count)]
