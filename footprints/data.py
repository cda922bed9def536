"""Images and building labels on disk: where they lie, what is in them, how they are split.

Three layouts, found by themselves: ``{train,val,test}/{images,labels}``; ``images`` with ``labels``; images with vector
files of the same stem in one folder. Or two folders, of which the labels' may be a single vector file for all images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from common.data.inputs import natural_key
from common.data.labeled import LabeledImage, Sample, require_two_classes, size_row, tally, try_each
from common.data.pairs import Facts, Pair, join, list_images, same_stem
from common.data.splits import PARTS, Split, split_by_folders, split_groups, split_ids
from common.images import pictures, windows
from common.images.grids import bounds
from common.images.ranges import ValueRanges
from common.images.rasters import TIFF_EXTENSIONS
from common.images.windows import Window, WindowFile, only_core
from footprints.scene import STRIP, Frame, RasterScene, Scene, is_vector, label_values, load_scene
from footprints.task import TASK

MEMORY = 2 << 30
"""Scenes beyond this many bytes together are read by windows instead of being kept."""
BYTES_PER_PIXEL = 4
SHOWN_VALUES = 6
KNOWN_SPOTS = 4000
"""Building pixels remembered per scene, for crops around buildings."""
SAME_GROUND = 0.01
"""Images that share more than this of the smaller one show the same ground."""


def find_pairs(
    root: Path | None, *, images: Path | None = None, labels: Path | None = None, flag: str = "--data-root"
) -> tuple[list[Pair], list[str]]:
    """Find images with their labels, in natural order; ids are stems, after ``train/`` and so on where folders say so.

    Args:
        root: folder in one of the layouts.
        images: instead: a folder of images...
        labels: ...and a folder of labels, or one vector file.
        flag: the argument that named the root, for messages.

    Returns:
        The pairs, and a line for each file without a partner.

    Raises:
        FileNotFoundError: a folder or file does not exist.
        ValueError: nothing is found; says what was looked for.
    """
    if images is not None and labels is not None:
        pairs, notes = _join(images, labels, "--images", "--labels")
        return _require(pairs, notes, images, labels)
    assert root is not None
    if not root.is_dir():
        raise FileNotFoundError(f"{flag} {root} is not a folder")
    parts = [part for part in PARTS if (root / part / "images").is_dir()]
    if parts:
        return _find_parts(root, parts)
    if (root / "images").is_dir():
        return _require(*_join(root / "images", root / "labels"), root / "images", root / "labels")
    pairs, notes = _join(root, root)
    if not pairs:
        raise ValueError(
            f"{flag} {root} holds neither train/images with train/labels, nor images/ with labels/, nor images "
            "beside vector files of the same name"
        )
    return pairs, notes


def _find_parts(root: Path, parts: Sequence[str]) -> tuple[list[Pair], list[str]]:
    pairs, notes = [], []
    for part in parts:
        found, unpaired = _join(root / part / "images", root / part / "labels")
        pairs += [Pair(f"{part}/{pair.id}", pair.image, pair.label) for pair in found]
        notes += unpaired
    return _require(pairs, notes, root / parts[0] / "images", root / parts[0] / "labels")


def _require(pairs: list[Pair], notes: list[str], images: Path, labels: Path) -> tuple[list[Pair], list[str]]:
    if not pairs:
        raise ValueError(f"no image of {images} has a label in {labels}; they are joined by their names without ending")
    return pairs, notes


def _join(
    images: Path, labels: Path, images_flag: str = "--data-root", labels_flag: str = "--data-root"
) -> tuple[list[Pair], list[str]]:
    found = list_images(images, images_flag)
    if is_vector(labels) and not labels.is_dir():
        if not labels.is_file():
            raise FileNotFoundError(f"{labels_flag} {labels} does not exist")
        return [Pair(same_stem(path.stem), path, labels) for path in found], []
    rasters = [] if labels.resolve() == images.resolve() else list_images(labels, labels_flag)
    vectors = sorted(path for path in labels.iterdir() if is_vector(path) and not path.name.startswith("."))
    return join(found, [*rasters, *vectors])


@dataclass
class SceneSet:
    """Scenes, and what an audit found in them."""

    scenes: list[Scene] = field(default_factory=list)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By id: pixels of background, of buildings, ignored."""
    spots: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    """By id: (row, column) of some building pixels, (n, 2)."""
    values: Counter[float] = field(default_factory=Counter)
    """Pixels by their value in the label rasters."""
    ranges: ValueRanges = field(default_factory=ValueRanges)
    """What the images' values mean, and which there are."""

    def part(self, ids: Sequence[str]) -> list[Scene]:
        """The scenes of these ids."""
        wanted = set(ids)
        return [scene for scene in self.scenes if scene.id in wanted]


def load_scenes(
    pairs: Sequence[Pair], memory: int = MEMORY, ranges: ValueRanges | None = None
) -> tuple[SceneSet, list[str]]:
    """Open all pairs and look at every pixel once.

    Args:
        pairs: the files.
        memory: bytes that scenes may take together; TIFFs beyond it are read by windows.
        ranges: what the images' values mean; None = their number types' ranges.

    Returns:
        The scenes, and a line for each pair that cannot be used.
    """
    found, used = SceneSet(ranges=ranges or ValueRanges()), 0

    def load(pair: Pair) -> None:
        nonlocal used
        size = _size_in_memory(pair)
        if size > min(memory - used, BYTES_PER_PIXEL * pictures.LARGEST):
            scene: Scene = RasterScene(pair, found.ranges)
        else:
            scene, used = load_scene(pair, found.ranges), used + size
        values = label_values(pair.label)
        found.counts[scene.id], found.spots[scene.id] = survey(scene)
        found.values += values
        found.scenes.append(scene)

    problems = try_each(pairs, load)
    return found, problems


def _size_in_memory(pair: Pair) -> int:
    if pair.image.suffix.lower() not in TIFF_EXTENSIONS:
        return 0
    return BYTES_PER_PIXEL * Frame.of(WindowFile(pair.image)).pixels


def survey(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Count the pixels of each class (ignored last) and remember some building pixels, strip by strip."""
    width = scene.frame.width
    counts, spots = np.zeros(3, np.int64), [np.zeros((0, 2), np.int32)]
    rng = np.random.default_rng(0)
    for strip in scene.frame.window.strips(STRIP):
        _, classes = scene.read(strip)
        seen = np.bincount(classes.ravel(), minlength=256)
        counts += [seen[0], seen[1], seen[255]]
        here = np.flatnonzero(classes == 1)
        kept = here if len(here) <= KNOWN_SPOTS else here[rng.integers(len(here), size=KNOWN_SPOTS)]
        spots.append(np.column_stack([kept // width + strip.row, kept % width]).astype(np.int32))
    every = np.concatenate(spots)
    return counts, every[rng.permutation(len(every))[:KNOWN_SPOTS]]


def audit(found: SceneSet) -> Facts:
    """What was found, as (name, value) rows.

    Raises:
        ValueError: there is no building pixel, or nothing else.
    """
    scenes = found.scenes
    background, building, ignored = (int(n) for n in sum(found.counts.values(), np.zeros(3, np.int64)))
    hint = "building is what is above 0, ignored what is declared nodata or transparent"
    require_two_classes(TASK.classes, (background, building), f"the labels of all {len(scenes)} images", hint)
    total = background + building + ignored
    shares = [f"{name} {n} ({n / total:.2%})" for name, n in zip(TASK.classes, (background, building), strict=True)]
    by_windows = sum(isinstance(scene, RasterScene) for scene in scenes)
    without = sum(int(counts[1]) == 0 for counts in found.counts.values())
    return [
        ("pairs", f"{len(scenes)}" + (f", {by_windows} of them read by windows" if by_windows else "")),
        size_row((scene.frame.height, scene.frame.width) for scene in scenes),
        ("label values", describe_values(found.values)),
        ("label pixels", ", ".join(shares)),
        ("ignored", f"{ignored} ({ignored / total:.2%}): nodata or transparent"),
        ("without any building", f"{without} images"),
        ("coordinate systems", tally((scene.frame.crs or "none" for scene in scenes), 3)),
    ]


def describe_values(values: Counter[float]) -> str:
    """The label values with their counts, the most frequent ones where there are many."""
    if not values:
        return "none: labels are outlines"
    shown = sorted(values.most_common(SHOWN_VALUES))
    text = ", ".join(f"{value:g} ({count})" for value, count in shown)
    if len(values) <= SHOWN_VALUES:
        return text
    return f"{text} and {len(values) - SHOWN_VALUES} more; all above 0 count as building: lossy compression blurs masks"


# Splitting


def split_scenes(scenes: Sequence[Scene], val_fraction: float, test_fraction: float, seed: int) -> tuple[Split, str]:
    """Split as the folders say, else at random with images of the same ground together, see `split_by_folders`.

    Raises:
        ValueError: there is nothing to train on, or only one image.
    """

    def draw(ids: Sequence[str], test: bool) -> tuple[Split, str]:
        if len(ids) < 2:
            raise ValueError(
                f"{len(ids)} usable image(s) found; training needs at least 2, one of them for validation: cut "
                "large ones into crops first, with footprints/crop.py"
            )
        known = set(ids)
        groups = same_ground([scene for scene in scenes if scene.id in known])
        shares = (val_fraction, test_fraction if test else 0, seed)
        if len(groups) in (1, len(ids)):
            how = "at random" + (", though they overlap: scores flatter" if len(groups) == 1 else "")
            return split_ids(ids, *shares), how
        places = {min(group, key=natural_key): group for group in groups}
        return split_groups(places, *shares), f"at random by {len(groups)} places, images of the same ground together"

    return split_by_folders([scene.id for scene in scenes], draw)


def same_ground(scenes: Sequence[Scene]) -> list[list[str]]:
    """Groups of ids whose images overlap on the ground, directly or through others; alone without georeference."""
    shapes: dict[str, list[tuple[int, shapely.Polygon]]] = {}
    for index, scene in enumerate(scenes):
        frame = scene.frame
        if frame.transform is not None:
            box = shapely.box(*bounds(frame.transform, frame.height, frame.width))
            shapes.setdefault(str(frame.crs), []).append((index, box))
    leader = list(range(len(scenes)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    for members in shapes.values():
        boxes = np.array([box for _, box in members])
        areas = shapely.area(boxes)
        for a, b in shapely.STRtree(boxes).query(boxes, predicate="intersects").T:
            if a < b and shapely.area(boxes[a] & boxes[b]) > SAME_GROUND * min(areas[a], areas[b]):
                leader[find(members[a][0])] = find(members[b][0])
    groups: dict[int, list[str]] = {}
    for index, scene in enumerate(scenes):
        groups.setdefault(find(index), []).append(scene.id)
    return list(groups.values())


# Tiles


@dataclass(frozen=True)
class Tile:
    """A part of a scene that is looked at at once: ``core`` is its own, ``window`` has context around it."""

    scene: Scene
    core: Window
    window: Window

    @property
    def id(self) -> str:
        """The scene's id, with row and column where the scene has several tiles."""
        whole = self.core == self.scene.frame.window
        return self.scene.id if whole else f"{self.scene.id}_{self.core.row}_{self.core.col}"

    def read(self) -> LabeledImage:
        """The window; outside of the core the classes are 255."""
        image, classes = self.scene.read(self.window)
        return LabeledImage(self.id, image, only_core(classes, self.core, self.window))

    @property
    def sample(self) -> Sample:
        """The tile, read when it is its turn."""
        return Sample(self.id, self.scene.id, self.read)


def plan_tiles(scenes: Sequence[Scene], side: int, context: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` pixels that cover every pixel of the scenes once, with ``context`` around them."""
    for scene in scenes:
        whole = scene.frame.window
        for core, window in windows.plan_tiles(whole, whole[2:], side, context, slack=2 * context):
            yield Tile(scene, core, window)
