"""Land-cover polygons to masks on the orthophotos' grids.

``python permeability/make_masks.py siose.gpkg --ortho INSUMOS/ORTOFOTOS --out DATA/OUTPUT/MASCARAS --field COVER --map
map.yaml`` translates a field; ``--burn 0 --background 1`` takes every polygon for the same, such as buildings. Polygons
in another coordinate system are reprojected. Sheets are read and written in bands of rows, whatever their size.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
import rasterio
import tyro

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.command.progress import progress
from common.command.yaml_file import load_yaml
from common.data.inputs import find_images, output_stems
from common.data.pairs import say_notes
from common.data.splits import PARTS, split_ids
from common.images.gdal import open_raster, read_bands
from common.images.grids import Grid, window_grid
from common.images.windows import Window
from common.images.write import GEOTIFF, gdal_colors
from common.inference.products import check_disk
from common.labels import NODATA
from common.outputs import OutputFolder
from common.vectors.burn import PolygonLayer
from permeability.labels import CLASSES, PALETTE

ROWS = 1024
"""Rows of a sheet in memory at once."""
Rule = Callable[[str], int | None]
"""Class of a polygon by the text of its field; None = the map does not say."""


@dataclass(frozen=True)
class Config:
    """Turn land-cover polygons into masks: 1 = permeable, 0 = non-permeable, 255 = ignored.

    Examples:
        python permeability/make_masks.py siose.gpkg --ortho sheets --out masks --field COVER --map map.yaml
    """

    vector: tyro.conf.Positional[Path]
    """Polygons: SHP, GPKG, GeoJSON, in any coordinate system."""
    ortho: Path
    """Folder of orthophotos (or one file) on whose grids the masks are made."""
    out: Path
    """Folder of its own: OUT/{train,val,test}/<sheet>.tif."""
    field: str | None = None
    """Attribute that tells a polygon's land cover; needs --map."""
    map: Path | None = None
    """YAML file, a line 'value: class' for each value of the field, compared as text; class 0, 1 or 255."""
    burn: int | None = None
    """In place of --field and --map: the class of every polygon."""
    background: int = NODATA
    """Class where there is no polygon."""
    layer: str | None = None
    """Layer of the vector file, where it has several."""
    split: Literal["sheet", "block"] = "sheet"
    """sheet: each sheet is for training, validation or test; block: contiguous blocks of each sheet are."""
    val_fraction: float = 0.1
    """Share for validation."""
    test_fraction: float = 0.1
    """Share for test."""
    seed: int = 0
    """Which sheets go where."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if (self.field is None) != (self.map is None) or (self.field is None) == (self.burn is None):
            raise ValueError("give either --field with --map, or --burn")
        for flag, value in (("--burn", self.burn), ("--background", self.background)):
            if value is not None and value not in (*PALETTE, NODATA):
                raise ValueError(f"{flag} {value} is no class; use 0 (non-permeable), 1 (permeable) or 255 (ignored)")
        if not (self.val_fraction >= 0 and self.test_fraction >= 0 and self.val_fraction + self.test_fraction < 1):
            raise ValueError(
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} must not be negative "
                "and must leave something to train on"
            )


def main() -> int:
    """Check everything, then write the masks."""
    config = parse_flags(Config)
    rule = make_rule(config)
    cover = open_cover(config)
    grids, problems = open_grids(find_images([config.ortho]))
    covered = find_covered(cover, grids, rule, keep_empty=config.background != NODATA)
    plan = plan_masks(covered, config)
    check_disk(config.out, sum(window[2] * window[3] for _, _, window in plan))
    stems = output_stems([grid.path for grid in covered])
    claim_folders(plan, stems, config)
    with rasterio.Env(GDAL_CACHEMAX=256):
        for grid, part, window in progress(plan, "burning masks", "window"):
            target = config.out / part / f"{stems[grid.path]}.tif"
            try:
                with OutputFolder(target.parent).delivery([grid.path, config.vector], [target.name]) as temporary:
                    made = temporary / target.name
                    counts = write_mask(made, cover, grid, window, rule, config.background)
            except (ValueError, OSError) as error:
                problems.append(f"{grid.path}: {' '.join(str(error).split())}")
                say(f"failed: {problems[-1]}")
                continue
            say(f"{target}: {window[3]} x {window[2]} pixels, {shares(counts)}")
    return PARTIAL if problems else 0


def claim_folders(plan: Sequence[tuple[Grid, str, Window]], stems: Mapping[Path, str], config: Config) -> None:
    """Make sure that the folders of the parts hold no other masks, and nothing that was not made from the same files.

    Raises:
        FileExistsError: names what is in the way.
    """
    OutputFolder(config.out).claim([f"{part}/" for part in PARTS], config.vector, owned=False)
    for part in PARTS:
        folder = OutputFolder(config.out / part)
        sheets = {f"{stems[grid.path]}.tif": grid.path for grid, of, _ in plan if of == part}
        folder.claim(list(sheets), config.vector, owned=False)
        for name, sheet in sheets.items():
            folder.check([name], [sheet, config.vector])


def open_cover(config: Config) -> PolygonLayer:
    """The land-cover polygons.

    Raises:
        FileNotFoundError, ValueError: see `PolygonLayer`; or the file names no coordinate system.
    """
    cover = PolygonLayer(config.vector, config.layer, config.field)
    if not cover.crs:
        raise ValueError(
            f"{config.vector}: names no coordinate system (a shapefile has it in a .prj file); assign the right one, "
            "for example with ogr2ogr -a_srs EPSG:25830"
        )
    return cover


def make_rule(config: Config) -> Rule:
    """How a polygon's class follows from its field."""
    if config.map is None:
        return lambda text: config.burn
    return read_map(config.map).get


def read_map(path: Path) -> dict[str, int]:
    """Read the classes of a field's values, as text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping, or to something else than 0, 1 and 255.
    """
    found = load_yaml("--map", path)
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"--map {path} holds no mapping; write one 'value: class' line for each value of the field")
    for value, name in found.items():
        if name not in ("0", "1", "255"):
            raise ValueError(
                f"--map {path}: {value}: {name} is no class; use 0 (non-permeable), 1 (permeable) or 255 (ignored)"
            )
    return {str(value): int(name) for value, name in found.items()}


def open_grids(paths: Sequence[Path]) -> tuple[list[Grid], list[str]]:
    """The grids of the orthophotos, and a line for each file that has none (said already).

    Raises:
        ValueError: none has one.
    """
    grids, problems = [], []
    for path in paths:
        try:
            grids.append(Grid.of(path))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not grids:
        raise ValueError(problems[0])
    for problem in problems:
        say(f"failed: {problem}")
    return grids, problems


def find_covered(cover: PolygonLayer, grids: Sequence[Grid], rule: Rule, *, keep_empty: bool) -> list[Grid]:
    """The sheets that the vector file covers; the others are named and left out.

    Args:
        cover: the vector file.
        grids: the sheets.
        rule: class of a polygon, None where it has none.
        keep_empty: keep sheets without a polygon that lie within the file's extent: they are background.

    Raises:
        ValueError: there are none, or the map does not say the class of a polygon.
    """
    covered, found, notes = [], 0, list[str]()
    unknown: Counter[str] = Counter()
    for grid in grids:
        if not cover.meets(grid):
            notes.append(f"{grid.path}: lies outside of {cover.path}, left out")
            continue
        values = cover.over(grid).values
        unknown.update(value for value in values if rule(value) is None)
        found += len(values)
        if not len(values):
            notes.append(f"{grid.path}: has no polygon" + ("" if keep_empty else ", left out"))
        if len(values) or keep_empty:
            covered.append(grid)
    say_notes(notes)
    if not found:
        raise ValueError(
            f"{cover.path} has no polygon over any of {len(grids)} orthophoto(s): {cover.places(grids[0])}"
        )
    if unknown:
        listed = ", ".join(f"'{value}' ({count} polygons)" for value, count in sorted(unknown.items()))
        raise ValueError(
            f"{cover.path}: the map does not say the class of these values of '{cover.field}': {listed}; "
            "add a line for each, with 255 to ignore it"
        )
    return covered


def plan_masks(grids: Sequence[Grid], config: Config) -> list[tuple[Grid, str, Window]]:
    """Each mask's sheet, part and window."""
    if config.split == "block":
        return [(grid, part, window) for grid in grids for part, window in blocks(grid, config)]
    whole = {str(grid.path): Window(0, 0, grid.height, grid.width) for grid in grids}
    if len(grids) == 1:
        say("note: the only sheet is for training; --split block divides it")
        return [(grids[0], "train", whole[str(grids[0].path)])]
    ids = split_ids(list(whole), config.val_fraction, config.test_fraction, config.seed)
    part_of = {path: part for part, paths in ids.items() for path in paths}
    return [(grid, part_of[str(grid.path)], whole[str(grid.path)]) for grid in grids]


def blocks(grid: Grid, config: Config) -> list[tuple[str, Window]]:
    """A sheet divided along its longer side: validation at one end, test at the other, training between.

    Raises:
        ValueError: the sheet is too small for that.
    """
    length = max(grid.height, grid.width)
    val, test = round(config.val_fraction * length), round(config.test_fraction * length)
    if length - val - test < 1 or (config.val_fraction and not val) or (config.test_fraction and not test):
        raise ValueError(f"{grid.path}: {grid.width} x {grid.height} pixels are too few to divide; use --split sheet")
    spans = {"train": (val, length - val - test), "val": (0, val), "test": (length - test, test)}
    result = []
    for part in PARTS:
        start, size = spans[part]
        if size:
            tall = grid.height >= grid.width
            result.append((part, Window(start, 0, size, grid.width) if tall else Window(0, start, grid.height, size)))
    return result


def write_mask(
    target: Path, cover: PolygonLayer, grid: Grid, window: Window, rule: Rule, background: int
) -> Counter[int]:
    """Write one mask, band by band; nodata and transparent pixels of the sheet are ignored in it.

    Returns:
        Pixels of each value.
    """
    polygons = cover.over(grid)
    classes = np.array([rule(value) for value in polygons.values], np.uint8)
    first, column, height, width = window
    options = GEOTIFF | {"dtype": "uint8", "count": 1, "nodata": NODATA, "photometric": "palette", "crs": grid.crs}
    options |= {"height": height, "width": width, "transform": window_grid(grid.transform, first, column)}
    counts = Counter[int]()
    with (
        open_raster(grid.path) as ortho,
        rasterio.open(target, "w", **options) as mask,
    ):
        mask.write_colormap(1, gdal_colors(PALETTE))
        mask.update_tags(source=cover.path.name, layer=cover.layer, field=cover.field or "")
        for row in range(first, first + height, ROWS):
            rows = min(ROWS, first + height - row)
            band = polygons.burn((row, column, rows, width), classes, background)
            band[~read_bands(ortho, (row, row + rows), (column, column + width))[1]] = NODATA
            mask.write(band, 1, window=((row - first, row - first + rows), (0, width)))
            counts.update({value: np.count_nonzero(band == value) for value in (*PALETTE, NODATA)})
    return counts


def shares(counts: Counter[int]) -> str:
    """What a mask holds, as a phrase."""
    total = counts.total()
    parts = [f"{label} {counts[index] / total:.1%}" for index, label in enumerate(CLASSES)]
    return ", ".join([*parts, f"ignored {counts[NODATA] / total:.1%}"])


if __name__ == "__main__":
    run_command(main)
