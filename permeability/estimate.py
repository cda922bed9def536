"""Areas with honest intervals: ``python permeability/estimate.py MAP.tif --classes sealed permeable``.

The first call draws a sample of points and writes it for judging; the second one, with ``--sample``, estimates. It
works on the class raster of every aerial task. The number of a map's pixels is biased by each of its errors; the sample
says by how much.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import numpy as np
import pyogrio
import shapely
import tyro
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.command.cli import run_command, say
from common.command.config import parse_flags
from common.command.progress import progress
from common.files import alone
from common.images.gdal import open_raster
from common.labels import NODATA
from common.outputs import OutputFolder
from common.vectors.burn import PolygonLayer, as_text, reading
from permeability.area import Floats, Points, allocate, points_needed
from permeability.area_report import Survey, page, table, write_zones
from permeability.area_sample import (
    DESIGN,
    LAYER,
    TABLE,
    Census,
    ClassMap,
    Design,
    Drawn,
    read_judgements,
    write_sample,
)
from permeability.labels import CLASSES

EXPECTED_SPREAD = 0.4
"""Standard deviation of a stratum of which nothing is known: sqrt(0.8 * 0.2), a map that is right in four of five
places. Like the two below a guess that only divides the points among the strata: a wrong one costs points or width,
not the interval's truth, which comes from the judged points (`benchmarks/area_intervals.md` measures it with these)."""
LEAST_SPREAD = 0.2
"""Of a stratum with probabilities: sqrt(0.96 * 0.04). A network that is surer is not believed, so that no stratum
is left nearly without points because of its own opinion of itself."""
LEAST = 20
"""Points of a stratum at least: where one point in twenty errs, 20 show an error in two samples of three (1 - 0.95^20);
fewer would mostly see none."""
RESULT, PAGE, ZONES = "areas.json", "areas.html", "areas.gpkg"


@dataclass(frozen=True)
class Config:
    """Estimate areas of a map's classes from a sample of judged points, with intervals of 95 %.

    Examples:
        python permeability/estimate.py outputs/permeability/sheet_mask.tif --points 200
        python permeability/estimate.py outputs/permeability/sheet_mask.tif --sample outputs/areas/sample.csv
    """

    maps: tyro.conf.Positional[tuple[Path, ...]]
    """Class rasters (S_mask.tif of infer.py). S_prob.tif beside all of them makes the estimates sharper."""
    sample: Path | None = None
    """The judged sample (CSV or GPKG, column reference filled); without it one is drawn."""
    output_dir: Path = Path("outputs/areas")
    """Where the sample, or areas.json and areas.html, are written."""
    classes: tuple[str, ...] = tuple(CLASSES)
    """Names of the classes, in the order of their indices; those that occur only on the ground too."""
    zones: Path | None = None
    """Polygons: areas are estimated for each zone and for all of them; what lies outside does not count."""
    zone_field: str | None = None
    """Field that names a polygon's zone (default: all polygons are one zone)."""
    points: int | None = None
    """Points to judge; default: as many as --half-width takes."""
    half_width: float = 0.05
    """Wanted half-width of the intervals, as a share of the whole area."""
    prob: bool = True
    """Use the probabilities beside the maps, where they are."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if not self.maps:
            raise ValueError("no map given; name the class raster(s), such as outputs/permeability/sheet_mask.tif")
        if len({path.name for path in self.maps}) < len(self.maps):
            raise ValueError("two maps have one file name; the sample could not tell them apart, so rename one")
        if not 2 <= len(set(self.classes)) == len(self.classes) < NODATA:
            raise ValueError(f"--classes {' '.join(self.classes)}: at least two different names are needed")
        if not 0 < self.half_width < 0.5:
            raise ValueError(f"--half-width {self.half_width} is a share of the area and must lie in 0...0.5")
        if self.points is not None and not 2 * len(self.classes) <= self.points <= 1_000_000:
            raise ValueError(f"--points {self.points} must be at least {2 * len(self.classes)}, two for each class")
        if self.zone_field is not None and self.zones is None:
            raise ValueError("--zone-field is about --zones, which is missing")


def main() -> int:
    """Count the map; draw a sample, or estimate from the judged one."""
    config = parse_flags(Config)
    census = Census.of(open_maps(config))
    probabilities = Probabilities.of(census) if config.prob else None
    if config.sample is None:
        draw_sample(config, census, probabilities)
    else:
        estimate(config, census, probabilities)
    return 0


def open_maps(config: Config) -> list[ClassMap]:
    """The maps, with the zones on them.

    Raises:
        FileNotFoundError, ValueError: one is missing or no class raster, or they lie in two coordinate systems.
    """
    for path in config.maps:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; name the class raster(s)")
    zones = None
    if config.zones is not None:
        layer = PolygonLayer(config.zones, field=config.zone_field)
        zones = (layer, sorted(zone_outlines(config)[0]))
        if len(zones[1]) >= NODATA:
            raise ValueError(f"{config.zones}: {len(zones[1])} zones; at most {NODATA - 1} can be estimated at once")
    maps = [ClassMap(path, len(config.classes), zones) for path in config.maps]
    for one in maps[1:]:
        if one.grid.crs != maps[0].grid.crs:
            raise ValueError(
                f"{one.path} lies in {one.grid.crs}, {maps[0].path} in {maps[0].grid.crs}; bring all maps into one "
                "coordinate system"
            )
    return maps


def zone_outlines(config: Config) -> tuple[dict[str, Any], CRS]:
    """The outline of each zone by name, and their coordinate system."""
    layer = PolygonLayer(config.zones or Path(), field=config.zone_field)
    columns = [config.zone_field] if config.zone_field else []
    with reading(layer.path):
        _, _, encoded, fields = pyogrio.raw.read(layer.path, layer=layer.layer, columns=columns)
        outlines = shapely.from_wkb(encoded, on_invalid="fix")
    names = np.array([as_text(value) for value in fields[0]] if fields else [""] * len(encoded), object)
    return {name: shapely.union_all(outlines[names == name]) for name in set(names.tolist())}, layer.crs


# Probabilities beside the maps


@dataclass(frozen=True)
class Probabilities:
    """What the maps' probabilities say of each class."""

    files: list[Path]
    means: Floats
    """(H, K): mean over each stratum's area."""

    @classmethod
    def of(cls, census: Census) -> Probabilities | None:
        """Those beside all maps; None if one has none, or none of the same size."""
        files = [probability_file(one.path) for one in census.maps]
        for path, one in zip(files, census.maps, strict=True):
            if not path.is_file():
                return None
            with open_raster(path) as dataset:
                shape = (dataset.height, dataset.width)
                if shape != (one.grid.height, one.grid.width) or dataset.count not in (1, one.classes):
                    say(f"note: {path} does not fit {one.path}, so probabilities are not used")
                    return None
        size, classes = census.counts[0].shape[1], census.maps[0].classes
        sums = np.zeros((size, classes))
        for path, one in zip(files, census.maps, strict=True):
            pixel = one.pixel_areas()
            with open_raster(path) as dataset:
                for first, strata in one.bands("reading the probabilities of"):
                    last = first + len(strata)
                    values = _per_class(dataset.read(window=((first, last), (0, one.grid.width))), classes)
                    weight = np.broadcast_to(pixel[first:last, None], strata.shape)[strata >= 0]
                    for k in range(classes):
                        sums[:, k] += np.bincount(strata[strata >= 0], weight * values[k][strata >= 0], size)
        if not np.isfinite(sums).all():
            say(f"note: {files[0]} has pixels without a probability where the map has a class, so they are not used")
            return None
        return cls(files, sums / np.maximum(census.strata().area, 1e-300)[:, None])

    def at(self, drawn: Drawn, classes: int) -> Floats:
        """(n, K) at the points."""
        result = np.zeros((len(drawn), classes))
        for index, path in enumerate(self.files):
            with open_raster(path) as dataset:
                for i in progress(np.flatnonzero(drawn.map == index), f"looking up points in {path.name}", "point"):
                    row, col = int(drawn.row[i]), int(drawn.col[i])
                    result[i] = _per_class(dataset.read(window=((row, row + 1), (col, col + 1))), classes)[:, 0, 0]
        return result


def probability_file(mask: Path) -> Path:
    """``S_prob.tif`` of ``S_mask.tif``."""
    return mask.with_name(f"{mask.stem.removesuffix('_mask')}_prob.tif")


def _per_class(bands: NDArray[Any], classes: int) -> Floats:
    """Of one band, P(second class), both of them; and whole numbers as shares of their type's largest."""
    if bands.dtype.kind == "u":
        bands = bands / np.iinfo(bands.dtype).max
    if len(bands) > 1:
        return bands
    result = np.zeros((classes, *bands.shape[1:]))
    result[:2] = 1 - bands[0], bands[0]
    return result


# The sample


def draw_sample(config: Config, census: Census, probabilities: Probabilities | None) -> None:
    """Draw points and write them for judging.

    Raises:
        FileExistsError: there is a sample already.
    """
    everything = census.strata()
    there = everything.pixels > 0
    spread = np.full(int(there.sum()), EXPECTED_SPREAD)
    if probabilities is not None:
        sure = probabilities.means[np.arange(len(there)), np.arange(len(there)) % len(config.classes)][there]
        spread = np.sqrt(np.clip(sure * (1 - sure), LEAST_SPREAD**2, 0.25))
    total = config.points or points_needed(everything[there], spread, config.half_width)
    each = min(LEAST, max(2, total // int(there.sum())))
    drawn_each = np.zeros(len(there), np.int64)
    drawn_each[there] = allocate(everything[there], spread, total, each)
    drawn = census.draw(drawn_each.tolist(), config.seed)
    design = make_design(config, census, drawn_each.tolist(), config.seed)
    folder = OutputFolder(config.output_dir)
    with alone(config.output_dir / TABLE):
        for name in (DESIGN, TABLE, LAYER):
            if (config.output_dir / name).exists():
                raise FileExistsError(
                    f"{config.output_dir / name} is there already, with judgements perhaps; give it with --sample, or "
                    "choose another --output-dir for a new sample"
                )
        with folder.delivery(config.maps, [DESIGN, TABLE, LAYER]) as temporary:
            write_sample(temporary, drawn, census, design)
    say(f"{len(drawn)} points in {int(there.sum())} strata to {config.output_dir / LAYER} and {TABLE}")
    say(
        f"judge them in their order: python potsdam_points/label.py PICTURES --sample {config.output_dir / TABLE}, or "
        "by filling the column 'reference' with the class that the ground really has "
        f"({', '.join(config.classes)}), in a GIS or a spreadsheet, without looking at the map; then run the same "
        f"command with --sample {config.output_dir / LAYER}"
    )


def make_design(config: Config, census: Census, drawn: list[int], seed: int) -> Design:
    """What is drawn from what."""
    names = [path.name for path in config.maps]
    return Design(names, list(config.classes), census.maps[0].zone_names, census.per_map, drawn, seed)


def redraw(config: Config, census: Census, sample: Path) -> tuple[Design, Drawn]:
    """The design beside a sample, and its points drawn again.

    Raises:
        FileNotFoundError, ValueError: there is none, or it was made for another map, other classes or other zones.
    """
    design = Design.read(sample.with_name(DESIGN))
    now = make_design(config, census, design.drawn, design.seed)
    for what, flag in (
        ("maps", "the maps"),
        ("classes", "--classes"),
        ("zones", "--zones"),
        ("counts", "the maps' pixels"),
    ):
        if getattr(design, what) != getattr(now, what):
            raise ValueError(
                f"{sample.with_name(DESIGN)}: drawn for others: {flag} differ; use those of the draw, or "
                "draw a new sample (the points' chances are known for those alone)"
            )
    return design, census.draw(design.drawn, design.seed)


# The estimate


def estimate(config: Config, census: Census, probabilities: Probabilities | None) -> None:
    """Estimate areas and accuracies from the judged points, print and write them."""
    assert config.sample is not None
    design, drawn = redraw(config, census, config.sample)
    reference = read_judgements(config.sample, drawn, design)
    judged = reference >= 0
    if not judged.any():
        raise ValueError(f"{config.sample}: no point has a reference yet; fill that column first")
    if not judged.all():
        say(f"note: {int(judged.sum())} of {len(judged)} points are judged: as they come in random order, a sample too")
    points = drawn.points(census)
    auxiliary = (
        None if probabilities is None else (probabilities.at(drawn, len(config.classes))[judged], probabilities.means)
    )
    survey = Survey(
        config.classes,
        Points(points.stratum[judged], points.area[judged]),
        reference[judged],
        census.strata(),
        auxiliary,
    )
    zones = design.zones if len(design.zones) > 1 else []
    results = [survey.result(None, "all"), *(survey.result(number, name) for number, name in enumerate(zones))]
    unit = "m2" if census.maps[0].grid.crs else "square units of the map's coordinates"
    report = {
        "maps": [str(path) for path in config.maps],
        "sample": str(config.sample),
        "points": int(judged.sum()),
        "unit": unit,
        "confidence": 0.95,
        "estimator": "stratified" if auxiliary is None else "stratified, with probabilities (regression)",
        "zones": results,
    }
    sources = [*config.maps, config.sample]
    outputs = [RESULT, PAGE, *[ZONES] * bool(config.zones)]
    folder = OutputFolder(config.output_dir)
    with alone(config.output_dir / RESULT), folder.delivery(sources, outputs) as temporary:
        (temporary / RESULT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (temporary / PAGE).write_text(page(report), encoding="utf-8")
        if config.zones is not None:
            write_zones(temporary / ZONES, *zone_outlines(config), config.classes, results)
    for result in results:
        print(table(result, unit))
    say(f"written: {config.output_dir / RESULT}, {config.output_dir / PAGE}")


if __name__ == "__main__":
    run_command(main)
