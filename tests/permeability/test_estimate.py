"""From a map to areas through the command: draw, judge, estimate; and what is refused."""

import csv
import json
import os

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from common.files import alone
from permeability.area_sample import Census, ClassMap
from tests.commands import command_fixtures, works_shown

started, command, call = command_fixtures("permeability")
SIDE = 200


def write_raster(path, bands, *, crs="EPSG:25830", transform=None, **options):
    bands = bands if bands.ndim == 3 else bands[None]
    options = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype} | options
    transform = transform or Affine(0.5, 0, 430_000, 0, -0.5, 4_580_000)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **options) as dataset:
        dataset.write(bands)
    return path


@pytest.fixture
def ground():
    """Truth: a quarter is class 1, as a half-disc; and a map that sees it where it is not."""
    rows, columns = np.indices((SIDE, SIDE))
    truth = ((rows - 100) ** 2 + columns**2 < 126**2).astype(np.uint8)
    wrong = np.random.default_rng(1).random(truth.shape) < np.where(truth == 1, 0.05, 0.25)
    return truth, np.where(wrong, 1 - truth, truth).astype(np.uint8)


def judge(table, truth_of, *, only=None):
    """Fill the column reference of a sample as somebody on the ground would."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:only]:
        row["reference"] = truth_of(row["map"], int(row["row"]), int(row["col"]))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


@pytest.fixture
def map_file(tmp_path, ground):
    return write_raster(tmp_path / "sheet_mask.tif", ground[1], nodata=255)


@pytest.fixture
def drawn(call, tmp_path, map_file):
    """A map and the sample that was drawn of it."""
    done = call("estimate", map_file, "--output-dir", tmp_path / "areas", "--half-width", 0.08)
    assert done.code == 0, done.err
    return tmp_path / "areas" / "sample.csv"


def truth_text(ground, names=("No permeable", "Permeable")):
    return lambda _, row, col: names[ground[0][row, col]]


def test_from_a_map_to_areas(call, tmp_path, ground, map_file, drawn):
    rows = judge(drawn, truth_text(ground))
    assert {row["map_class"] for row in rows} == {"No permeable", "Permeable"}
    done = call("estimate", map_file, "--sample", drawn, "--output-dir", tmp_path / "result")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "result" / "areas.json").read_text())
    (everything,) = report["zones"]
    assert report["unit"] == "m2" and everything["area"] == pytest.approx(SIDE**2 / 4)
    permeable = everything["classes"][1]
    true_area, mapped_area = (ground[i].sum() / 4 for i in (0, 1))
    assert permeable["pixel_area"] == pytest.approx(mapped_area)
    assert permeable["low"] <= true_area <= permeable["high"]
    assert abs(permeable["estimate"] - true_area) < abs(mapped_area - true_area)
    right = (ground[0] == ground[1]).mean()
    assert everything["overall_accuracy"]["low"] < right < everything["overall_accuracy"]["high"]
    assert np.sum(everything["error_matrix"]) == pytest.approx(1)
    assert 0 < permeable["points_to_halve"] < 4 * len(rows)
    assert f"{permeable['estimate']:,.0f}" in done.out
    page = (tmp_path / "result" / "areas.html").read_text()
    assert f"{permeable['low']:,.0f}" in page and "http" not in page


def test_what_takes_long_is_shown(call, tmp_path, ground, map_file, monkeypatch):
    shown = works_shown(monkeypatch)
    probability = np.clip(0.5 + 0.4 * (ground[1] - 0.5), 0, 1).astype(np.float32)
    write_raster(map_file.with_name(map_file.name.replace("_mask", "_prob")), probability)
    flags = ("--output-dir", tmp_path / "areas", "--half-width", 0.08, "--prob")
    assert call("estimate", map_file, *flags).code == 0
    name = map_file.name
    assert [f"counting {name}", f"reading the probabilities of {name}", f"drawing points in {name}"] == [
        what for what, done in shown if done
    ]
    judge(tmp_path / "areas" / "sample.csv", truth_text(ground))
    assert call("estimate", map_file, "--sample", tmp_path / "areas" / "sample.csv", *flags).code == 0
    assert shown[-1] == (f"looking up points in {name.replace('_mask', '_prob')}", True)


def test_the_estimate_by_hand(call, tmp_path, ground, map_file, drawn):
    """The stratified estimate is the mean over each stratum's points, weighted by its share of the map."""
    rows = judge(drawn, truth_text(ground))
    call("estimate", map_file, "--sample", drawn, "--output-dir", tmp_path / "result")
    found = json.loads((tmp_path / "result" / "areas.json").read_text())["zones"][0]["classes"][1]["estimate"]
    parts = []
    for index, name in enumerate(("No permeable", "Permeable")):
        here = [row["reference"] == "Permeable" for row in rows if row["map_class"] == name]
        parts.append((ground[1] == index).mean() * np.mean(here))
    assert found == pytest.approx(sum(parts) * SIDE**2 / 4)


def test_a_judged_geopackage_gives_the_same(call, tmp_path, ground, map_file, drawn):
    rows = judge(drawn, truth_text(ground, names=("0", "1")))
    layer = drawn.with_suffix(".gpkg")
    meta, _, geometry, fields = pyogrio.raw.read(layer)
    assert meta["crs"] == "EPSG:25830"
    x = shapely.get_coordinates(shapely.from_wkb(geometry))[:, 0]
    assert np.allclose(x, 430_000 + (np.array([int(row["col"]) for row in rows]) + 0.5) / 2)
    fields[list(meta["fields"]).index("reference")] = np.array([row["reference"] for row in rows], object)
    layer.unlink()
    pyogrio.raw.write(layer, geometry, fields, meta["fields"], crs=meta["crs"], geometry_type="Point")
    results = []
    for sample in (drawn, layer):
        assert call("estimate", map_file, "--sample", sample, "--output-dir", tmp_path / sample.suffix).code == 0
        results.append(json.loads((tmp_path / sample.suffix / "areas.json").read_text())["zones"])
    assert results[0] == results[1]


def test_stopping_early_is_fine_and_said(call, tmp_path, ground, map_file, drawn):
    total = len(judge(drawn, truth_text(ground), only=60))
    done = call("estimate", map_file, "--sample", drawn, "--output-dir", tmp_path / "result")
    assert done.code == 0 and f"60 of {total} points are judged" in done.err


def change(drawn, work):
    with drawn.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    rows = work(rows) or rows
    with drawn.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda rows: rows[:-1], "were removed"),
        (lambda rows: rows[7].update(reference=""), "point 8 has no reference, but later ones"),
        (lambda rows: rows[7].update(col=int(rows[7]["col"]) + 1), "point 8 lies at sheet_mask.tif"),
        (lambda rows: [*rows, {**rows[0], "id": len(rows) + 1}], "was not drawn"),
        (lambda rows: [*rows, rows[0]], "occurs twice"),
        (lambda rows: rows[3].update(reference="meadow"), "reference 'meadow' is no class"),
        (lambda rows: rows[3].update(reference="2"), "reference '2' is no class"),
        (lambda rows: rows[3].update(row="x"), "'x' is no row of a point"),
        (lambda rows: [{**row, "reference": ""} for row in rows], "no point has a reference yet"),
    ],
)
def test_a_sample_that_is_no_longer_random_is_refused(call, tmp_path, ground, map_file, drawn, work, words):
    judge(drawn, truth_text(ground))
    change(drawn, work)
    call("estimate", map_file, "--sample", drawn, "--output-dir", tmp_path / "result").mistake(drawn, words)
    assert not (tmp_path / "result").exists()


def test_another_map_and_a_missing_design_are_refused(call, tmp_path, ground, map_file, drawn):
    judge(drawn, truth_text(ground))
    other = ground[1].copy()
    other[:3] = 1
    write_raster(map_file, other, nodata=255)
    call("estimate", map_file, "--sample", drawn).mistake("design.json", "the maps' pixels differ")
    design = json.loads(drawn.with_name("design.json").read_text())
    changes = ({"drawn": ["a", "b"]}, {"drawn": [10**12, 0]}, {"seed": -1}, {"seed": "x"}, {"counts": 3})
    for text in ("{}", "[" * 100_000, *(json.dumps(design | change) for change in changes)):
        drawn.with_name("design.json").write_text(text)
        call("estimate", map_file, "--sample", drawn).mistake("design.json", "draw the sample anew")
    drawn.with_name("design.json").unlink()
    call("estimate", map_file, "--sample", drawn).mistake("design.json does not exist")


def test_a_judged_sample_is_never_drawn_over(call, tmp_path, ground, map_file, drawn):
    judge(drawn, truth_text(ground))
    before = drawn.read_bytes()
    call("estimate", map_file, "--output-dir", drawn.parent).mistake("is there already")
    assert drawn.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--half-width", "nan"], "--half-width nan"),
        (["--points", "3"], "--points 3 must be at least 4"),
        (["--classes", "a"], "at least two different names"),
        (["--classes", "a", "a"], "at least two different names"),
        (["--zone-field", "NAME"], "--zones, which is missing"),
        (["--zones", "none.gpkg"], "none.gpkg: no such file"),
        (["--sample", "none.csv"], "does not exist"),
    ],
)
def test_flags_that_cannot_be(call, map_file, flags, words):
    call("estimate", map_file, *flags).mistake(words)


def test_maps_that_are_none(call, tmp_path, ground):
    truth = ground[0]
    call("estimate").mistake("no map given")
    call("estimate", tmp_path / "none.tif").mistake("none.tif: no such file")
    call("estimate", write_raster(tmp_path / "p.tif", truth.astype(np.float32))).mistake("p.tif", "one band of uint8")
    call("estimate", write_raster(tmp_path / "k.tif", truth + np.uint8(3))).mistake(
        "has the class 4, --classes names 2"
    )
    call("estimate", write_raster(tmp_path / "e.tif", truth * 0 + np.uint8(255), nodata=255)).mistake(
        "no pixel has a class"
    )
    one, other = write_raster(tmp_path / "a.tif", truth), write_raster(tmp_path / "b.tif", truth, crs="EPSG:25829")
    call("estimate", one, other).mistake("b.tif lies in EPSG:25829", "EPSG:25830")


def zones_file(path, crs="EPSG:25830"):
    """Two districts of the sheet, the western one in two parts."""
    boxes = [(0, 0, 40, 100), (40, 0, 80, 100), (80, 0, 160, 200)]
    corners = np.array(boxes) / 2 * [1, -1, 1, -1] + [430_000, 4_580_000] * 2
    shapes = [shapely.box(*box) for box in corners]
    names = np.array(["west", "west", "east"], object)
    pyogrio.raw.write(path, shapely.to_wkb(shapes), [names], ["NAME"], crs=crs, geometry_type="Polygon")
    return path


def test_zones_have_estimates_of_their_own(call, tmp_path, ground, map_file):
    zones = zones_file(tmp_path / "zones.gpkg")
    flags = [map_file, "--zones", zones, "--zone-field", "NAME", "--output-dir", tmp_path / "areas"]
    assert call("estimate", *flags, "--points", 240).code == 0
    judge(tmp_path / "areas" / "sample.csv", truth_text(ground))
    done = call("estimate", *flags, "--sample", tmp_path / "areas" / "sample.csv")
    assert done.code == 0, done.err
    results = {one["zone"]: one for one in json.loads((tmp_path / "areas" / "areas.json").read_text())["zones"]}
    for name, part in (("west", np.s_[:100, :80]), ("east", np.s_[:, 80:160])):
        true_area = ground[0][part].sum() / 4
        assert results[name]["area"] == pytest.approx(ground[0][part].size / 4)
        assert results[name]["classes"][1]["low"] <= true_area <= results[name]["classes"][1]["high"]
    total = sum(results[name]["classes"][1]["estimate"] for name in ("west", "east"))
    assert results["all"]["classes"][1]["estimate"] == pytest.approx(total)
    meta, _, geometry, fields = pyogrio.raw.read(tmp_path / "areas" / "areas.gpkg")
    table = dict(zip(meta["fields"], fields, strict=True))
    assert sorted(table["zone"]) == ["east", "west"] and len(geometry) == 2
    west = list(table["zone"]).index("west")
    assert table["Permeable_m2"][west] == pytest.approx(results["west"]["classes"][1]["estimate"])


def test_probabilities_beside_the_map_are_used(call, tmp_path, ground, map_file, drawn):
    noise = np.random.default_rng(2).normal(0, 0.2, ground[0].shape)
    guess = np.clip(0.2 + 0.6 * ground[0] + noise, 0, 1)
    judge(drawn, truth_text(ground))
    flags = ["estimate", map_file, "--sample", drawn, "--output-dir"]
    assert call(*flags, tmp_path / "plain").code == 0
    write_raster(tmp_path / "sheet_prob.tif", guess.astype(np.float32), nodata=np.nan)
    assert call(*flags, tmp_path / "float").code == 0
    write_raster(tmp_path / "sheet_prob.tif", np.round(guess * 65535).astype(np.uint16))
    assert call(*flags, tmp_path / "whole").code == 0
    reports = {name: json.loads((tmp_path / name / "areas.json").read_text()) for name in ("plain", "float", "whole")}
    found = {name: report["zones"][0]["classes"][1] for name, report in reports.items()}
    assert "probabilities" in reports["float"]["estimator"] and "probabilities" not in reports["plain"]["estimator"]
    assert found["float"]["standard_error"] < 0.8 * found["plain"]["standard_error"]
    assert found["float"]["low"] <= ground[0].sum() / 4 <= found["float"]["high"]
    assert found["whole"]["estimate"] == pytest.approx(found["float"]["estimate"], rel=1e-3)


def test_the_draw_is_a_random_sample_of_every_stratum(tmp_path, ground):
    """Over many draws every pixel of a stratum is as likely as any other, also across sheets."""
    small = np.array([[0, 1, 255, 1], [1, 0, 0, 1]], np.uint8)
    paths = [write_raster(tmp_path / f"{i}.tif", small, nodata=255) for i in range(2)]
    census = Census.of([ClassMap(path, 2, None) for path in paths])
    assert census.strata().pixels.tolist() == [6, 8] and census.per_map == [[3, 4], [3, 4]]
    hits = np.zeros((2, 2, 4))
    for seed in range(600):
        drawn = census.draw([2, 3], seed)
        assert (small[drawn.row, drawn.col] == drawn.stratum).all() and len(drawn) == 5
        np.add.at(hits, (drawn.map, drawn.row, drawn.col), 1)
    assert hits[:, 0, 2].sum() == 0
    expected = np.where(small == 0, 600 * 2 / 6, 600 * 3 / 8)
    assert (np.abs(hits - expected)[:, small != 255] < 5 * np.sqrt(expected[small != 255])).all()
    again = census.draw([2, 3], 7)
    assert (again.col == census.draw([2, 3], 7).col).all()


def test_pixels_in_degrees_have_the_area_on_the_ground(tmp_path):
    step = 1e-4
    path = write_raster(
        tmp_path / "g.tif", np.zeros((3, 4), np.uint8), crs="EPSG:4326", transform=Affine(step, 0, 10, 0, -step, 60)
    )
    area = Census.of([ClassMap(path, 2, None)]).strata().area[0]
    metres = 111_412 * np.cos(np.radians(60)) * 111_412  # a degree at 60 N: 111 412 m of latitude
    assert area == pytest.approx(12 * step**2 * metres, rel=3e-3)


def test_allotment_follows_the_wanted_half_width(call, tmp_path, map_file):
    counts = []
    for width in (0.04, 0.08):
        call("estimate", map_file, "--half-width", width, "--output-dir", tmp_path / str(width))
        counts.append(len((tmp_path / str(width) / "sample.csv").read_text().splitlines()) - 1)
    assert counts[0] == pytest.approx(4 * counts[1], rel=0.05)


def test_a_sample_is_not_drawn_while_another_is(call, tmp_path, map_file):
    with alone(tmp_path / "out" / "sample.csv"):
        call("estimate", map_file, "--points", "50", "--output-dir", tmp_path / "out").mistake("sample.csv: process")
    assert not (tmp_path / "out").exists()


def test_one_estimate_at_a_time(call, tmp_path, ground, map_file, drawn):
    judge(drawn, truth_text(ground))
    flags = (map_file, "--sample", drawn, "--output-dir", tmp_path / "result")
    with alone(tmp_path / "result" / "areas.json"):
        call("estimate", *flags).mistake(f"areas.json: process {os.getpid()}")
    with alone(drawn):  # somebody judges on: what is judged so far can be estimated
        assert call("estimate", *flags).code == 0
    assert [path.name for path in tmp_path.glob("*/.*")] == []
