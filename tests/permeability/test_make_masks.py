"""The command that turns land cover into masks: what it writes, where, and what it refuses."""

import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from rasterio.warp import transform

from permeability import make_masks
from tests.commands import command_fixtures

started, command, call = command_fixtures("permeability")
UTM = "EPSG:25830"
LEFT, TOP = 440_000, 4_470_000


def write_sheet(path, column=0, height=60, width=80, nodata=None):
    """A sheet of 0.5 m that begins some columns east of the first."""
    path.parent.mkdir(exist_ok=True, parents=True)
    place = Affine(0.5, 0, LEFT + column / 2, 0, -0.5, TOP)
    options = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": height, "width": width, "nodata": nodata}
    pixels = np.full((3, height, width), 90, np.uint8)
    if nodata is not None:
        pixels[:, :5] = nodata
    with rasterio.open(path, "w", **options, crs=UTM, transform=place) as dataset:
        dataset.write(pixels)
    return path


def box(left, top, right, bottom):
    """Columns and rows of the first sheet."""
    return shapely.box(LEFT + left / 2, TOP - bottom / 2, LEFT + right / 2, TOP - top / 2)


def write_cover(path, shapes, values, crs=UTM):
    shapes = np.array(shapes)
    if crs != UTM:
        shapes = shapely.transform(shapes, lambda p: np.column_stack(transform(UTM, crs, p[:, 0], p[:, 1])))
    kind = {"geometry_type": "Polygon", "crs": crs}
    pyogrio.raw.write(path, shapely.to_wkb(shapes), [np.array(values)], ["COVER"], **kind)
    return path


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.fixture
def land(tmp_path):
    """A sheet whose left half is meadow, with a road on top, water at the right and nothing between."""
    write_sheet(tmp_path / "ortho" / "sheet.tif")
    shapes = [box(-50, -50, 40, 200), box(10, -50, 14, 200), box(60, 0, 500, 60)]
    write_cover(tmp_path / "cover.gpkg", shapes, ["meadow", "road", "water"])
    (tmp_path / "map.yaml").write_text("meadow: 1\nroad: 0\nwater: 255\n")
    return tmp_path


def flags(folder, *more, out="masks", vector="cover.gpkg"):
    return [folder / vector, "--ortho", folder / "ortho", "--out", folder / out, *more]


def by_map(folder):
    return ("--field", "COVER", "--map", folder / "map.yaml")


def test_a_mask_on_the_sheets_grid(land, call):
    result = call("make_masks", *flags(land, *by_map(land)))
    assert result.code == 0, result.err
    expected = np.full((60, 80), 255)
    expected[:, :40], expected[:, 10:14] = 1, 0
    with rasterio.open(land / "masks" / "train" / "sheet.tif") as mask:
        assert np.array_equal(mask.read(1), expected)
        assert (mask.crs, mask.transform, mask.nodata) == (UTM, Affine(0.5, 0, LEFT, 0, -0.5, TOP), 255)
        assert mask.colormap(1)[1] == (0, 128, 0, 255) and mask.colormap(1)[0] == (211, 211, 211, 255)
        assert mask.tags()["source"] == "cover.gpkg" and mask.dtypes == ("uint8",)
    assert "No permeable 5.0%, Permeable 45.0%, ignored 50.0%" in result.err
    left = sorted(path.name for path in (land / "masks").rglob("*"))
    assert left == ["provenance.jsonl", "sheet.tif", "train"], "nothing temporary is left"


def test_one_class_for_all_and_a_background(land, call):
    assert call("make_masks", *flags(land, "--burn", 0, "--background", 1)).code == 0
    expected = np.ones((60, 80))
    expected[:, :40] = expected[:, 60:] = 0
    assert np.array_equal(read(land / "masks" / "train" / "sheet.tif"), expected)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:25829", "EPSG:3857"])
def test_polygons_in_another_coordinate_system(land, call, crs):
    corners = np.random.default_rng(0).uniform((0.2, 0.2), (79.8, 59.8), (6, 2))
    shapes = [shapely.convex_hull(shapely.MultiPoint(to_ground(corners)))]
    write_cover(land / "there.gpkg", shapes, ["meadow"], crs)
    assert call("make_masks", *flags(land, *by_map(land), vector="there.gpkg")).code == 0
    expected = rasterize(shapes, (60, 80), fill=255, transform=Affine(0.5, 0, LEFT, 0, -0.5, TOP))
    burnt = read(land / "masks" / "train" / "sheet.tif")
    assert np.array_equal(burnt, expected) and (burnt == 1).sum() > 100


def to_ground(points):
    return np.column_stack([LEFT + points[:, 0] / 2, TOP - points[:, 1] / 2])


def test_bands_of_rows_make_the_same_mask(land, call, monkeypatch):
    call("make_masks", *flags(land, *by_map(land)))
    monkeypatch.setattr(make_masks, "ROWS", 7)
    assert call("make_masks", *flags(land, *by_map(land), out="again")).code == 0
    assert np.array_equal(read(land / "masks" / "train" / "sheet.tif"), read(land / "again" / "train" / "sheet.tif"))


def test_nodata_of_the_sheet_is_ignored(land, call):
    write_sheet(land / "ortho" / "sheet.tif", nodata=0)
    assert call("make_masks", *flags(land, "--burn", 0, "--background", 1)).code == 0
    mask = read(land / "masks" / "train" / "sheet.tif")
    assert (mask[:5] == 255).all() and (mask[5:] != 255).all()


def test_blocks_divide_a_sheet_without_overlap(land, call):
    assert call("make_masks", *flags(land, *by_map(land), "--split", "block", "--val-fraction", 0.25)).code == 0
    assert call("make_masks", *flags(land, *by_map(land), out="whole")).code == 0
    whole, seen = read(land / "whole" / "train" / "sheet.tif"), np.zeros((60, 80), int)
    widths = {}
    for part in ("train", "val", "test"):
        with rasterio.open(land / "masks" / part / "sheet.tif") as mask:
            column = round((mask.transform.c - LEFT) * 2)
            assert mask.transform.f == TOP and mask.height == 60
            assert np.array_equal(mask.read(1), whole[:, column : column + mask.width])
            seen[:, column : column + mask.width] += 1
            widths[part] = mask.width
    assert (seen == 1).all() and widths == {"train": 52, "val": 20, "test": 8}


def test_a_tall_sheet_is_divided_by_rows(land, call):
    write_sheet(land / "ortho" / "sheet.tif", height=90)
    assert call("make_masks", *flags(land, *by_map(land), "--split", "block", "--test-fraction", 0)).code == 0
    assert read(land / "masks" / "val" / "sheet.tif").shape == (9, 80)
    assert read(land / "masks" / "train" / "sheet.tif").shape == (81, 80)
    assert not (land / "masks" / "test").exists()


def test_sheets_are_divided_by_seed(land, call):
    for number in range(1, 10):
        write_sheet(land / "ortho" / f"sheet{number}.tif", column=10 * number)
    assert call("make_masks", *flags(land, *by_map(land), "--test-fraction", 0.2)).code == 0
    parts = {part: len(list((land / "masks" / part).glob("*.tif"))) for part in ("train", "val", "test")}
    assert parts == {"train": 7, "val": 1, "test": 2}


def test_sheets_without_polygons(land, call):
    write_sheet(land / "ortho" / "far.tif", column=100_000)
    write_cover(land / "corners.gpkg", [box(0, 0, 9, 9), box(300, 0, 309, 9)], ["meadow", "meadow"])
    write_sheet(land / "ortho" / "between.tif", column=100)
    result = call("make_masks", *flags(land, *by_map(land), vector="corners.gpkg"))
    assert (
        result.code == 0 and "far.tif: lies outside" in result.err and "between.tif: has no polygon, left" in result.err
    )
    assert [p.name for p in (land / "masks").rglob("*.tif")] == ["sheet.tif"]
    burn = ("--burn", 0, "--background", 1)
    assert call("make_masks", *flags(land, *burn, vector="corners.gpkg", out="burnt")).code == 0
    masks = {p.name: read(p) for p in (land / "burnt").rglob("*.tif")}
    assert masks.keys() == {"sheet.tif", "between.tif"} and (masks["between.tif"] == 1).all()


@pytest.mark.parametrize("burn", [True, False])
@pytest.mark.parametrize("where", [box(10_000, 0, 10_010, 10), box(0, -900, 10, -800)])
def test_a_vector_file_in_the_wrong_place_is_an_error(land, call, where, burn):
    write_cover(land / "away.gpkg", [where], ["meadow"])
    how = ("--burn", 0, "--background", 1) if burn else by_map(land)
    result = call("make_masks", *flags(land, *how, vector="away.gpkg"))
    result.mistake("away.gpkg has no polygon over any of 1 orthophoto", "sheet.tif", "x 44", "EPSG:25830")
    assert not (land / "masks").exists()


def test_polygons_all_around_but_not_over_the_sheet_are_an_error(land, call):
    ring = shapely.difference(box(-90, -90, 200, 200), box(-20, -20, 100, 100))
    write_cover(land / "around.gpkg", [ring], ["meadow"])
    call("make_masks", *flags(land, *by_map(land), vector="around.gpkg")).mistake("no polygon over any")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_shapefile_without_coordinate_system_is_refused(land, call):
    write_cover(land / "nowhere.shp", [box(0, 0, 20, 60)], ["meadow"])
    (land / "nowhere.prj").unlink()
    result = call("make_masks", *flags(land, *by_map(land), vector="nowhere.shp"))
    result.mistake("nowhere.shp: names no coordinate system", ".prj")


def test_values_that_the_map_does_not_say_are_listed(land, call):
    (land / "map.yaml").write_text("meadow: 1\n")
    result = call("make_masks", *flags(land, *by_map(land)))
    result.mistake("'road' (1 polygons)", "'water' (1 polygons)", "COVER", "255 to ignore")
    assert not (land / "masks").exists()


def test_keys_are_compared_as_text(land, call):
    shapes = [box(0, 0, 20, 60), box(20, 0, 40, 60), box(40, 0, 80, 60)]
    write_cover(land / "codes.gpkg", shapes, ["01", "1", "off"])
    (land / "map.yaml").write_text("01: 1\n1: 0\noff: 255\n")
    assert call("make_masks", *flags(land, *by_map(land), vector="codes.gpkg")).code == 0
    mask = read(land / "masks" / "train" / "sheet.tif")
    assert mask[0, [10, 30, 60]].tolist() == [1, 0, 255]
    write_cover(land / "numbers.gpkg", shapes, [1, 2, 3])
    (land / "map.yaml").write_text("1: 1\n2: 0\n3: 1\n")
    assert call("make_masks", *flags(land, *by_map(land), vector="numbers.gpkg", out="again")).code == 0
    assert read(land / "again" / "train" / "sheet.tif")[0, [10, 30, 60]].tolist() == [1, 0, 1]


def test_a_damaged_sheet_does_not_stop_the_others(land, call):
    (land / "ortho" / "broken.tif").write_bytes(b"II*\0 not a raster")
    result = call("make_masks", *flags(land, *by_map(land)))
    result.mistake("broken.tif", code=1)
    assert (land / "masks" / "train" / "sheet.tif").exists()


def test_a_sheet_cut_short_does_not_stop_the_others(land, call, monkeypatch):
    write_sheet(land / "ortho" / "second.tif", column=10)
    write = make_masks.write_mask

    def fail(target, cover, grid, *rest):
        if grid.path.name == "second.tif":
            raise rasterio.errors.RasterioIOError("Read failed")
        return write(target, cover, grid, *rest)

    monkeypatch.setattr(make_masks, "write_mask", fail)
    call("make_masks", *flags(land, *by_map(land))).mistake("second.tif", "Read failed", code=1)
    assert [p.name for p in (land / "masks").rglob("*.tif")] == ["sheet.tif"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--field with --map", "--burn")),
        (("--field", "COVER"), ("--field with --map",)),
        (("--field", "COVER", "--map", "MAP", "--burn", 1), ("or --burn",)),
        (("--burn", 7), ("--burn 7", "255 (ignored)")),
        (("--burn", 1, "--background", 9), ("--background 9",)),
        (("--burn", 1, "--val-fraction", 0.6, "--test-fraction", 0.4), ("--val-fraction 0.6",)),
        (("--burn", 1, "--split", "block", "--val-fraction", 0.001), ("80 x 60 pixels", "--split sheet")),
        (("--field", "COVER", "--map", "lost.yaml"), ("lost.yaml does not exist",)),
        (("--field", "cover", "--map", "MAP"), ("no field 'cover'", "COVER")),
        (("--burn", 1, "--layer", "roads"), ("no layer 'roads'",)),
    ],
)
def test_mistakes_of_the_command_line(land, call, arguments, words):
    arguments = [land / "map.yaml" if word == "MAP" else word for word in arguments]
    call("make_masks", *flags(land, *arguments)).mistake(*words)
    assert not (land / "masks").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("meadow: green\n", ("meadow: green",)),
        ("meadow: 2\n", ("meadow: 2 is no class",)),
        ("- meadow\n", ("value: class",)),
        ("", ("value: class",)),
        ("a: [\n", ("not valid YAML",)),
        ("meadow:\n  - 1\n", ("is no class",)),
    ],
)
def test_maps_that_make_no_sense_are_refused(land, call, text, words):
    (land / "map.yaml").write_text(text)
    call("make_masks", *flags(land, *by_map(land))).mistake("map.yaml", *words)


def test_masks_need_a_new_folder(land, call):
    (land / "masks").mkdir()
    (land / "masks" / "old.tif").touch()
    call("make_masks", *flags(land, *by_map(land))).mistake("old.tif is in the way")


def test_masks_replace_those_of_an_earlier_run_and_nothing_else(land, call):
    assert call("make_masks", *flags(land, *by_map(land))).code == 0
    masks = sorted((land / "masks").rglob("*.tif"))
    before = [path.read_bytes() for path in masks]
    assert call("make_masks", *flags(land, *by_map(land))).code == 0
    assert sorted((land / "masks").rglob("*.tif")) == masks and not list((land / "masks").rglob(".*"))
    masks[0].write_bytes(b"mine")
    call("make_masks", *flags(land, *by_map(land))).mistake(masks[0].name, "is in the way")
    assert masks[0].read_bytes() == b"mine" and [path.read_bytes() for path in masks[1:]] == before[1:]
    stale = masks[0].with_name("stale.tif")
    masks[0].rename(stale)
    call("make_masks", *flags(land, *by_map(land))).mistake("stale.tif is in the way")


def test_paths_that_do_not_exist_are_named(land, call):
    call("make_masks", *flags(land, "--burn", 1, vector="lost.shp")).mistake("lost.shp")
    (land / "empty").mkdir()
    arguments = [land / "cover.gpkg", "--ortho", land / "empty", "--out", land / "masks", "--burn", 1]
    call("make_masks", *arguments).mistake("no images found")


def test_pictures_without_georeference_alone_are_an_error(land, call):
    (land / "ortho" / "sheet.tif").unlink()
    Image.new("RGB", (20, 20)).save(land / "ortho" / "picture.png")
    call("make_masks", *flags(land, "--burn", 1)).mistake("picture.png", "no georeference")


def test_the_script_runs_from_anywhere(land, command):
    result = command("make_masks", *flags(land, *by_map(land)), cwd=land)
    assert result.code == 0 and result.out == "", result.err


REAL = Path(os.environ.get("SEG_REAL_DATA", "/nowhere")) / "permeability"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs SEG_REAL_DATA")
@pytest.mark.parametrize("place", ["new_brunswick", "tanzania"])
def test_real_land_cover_agrees_with_an_independent_rasterization(place, tmp_path, call):
    folder, out = REAL / place, tmp_path / "masks"
    vector = next(path for path in folder.iterdir() if path.suffix in (".gpkg", ".geojson"))
    (tmp_path / "map.yaml").write_text("1: 1\n2: 1\n3: 0\n4: 0\n255: 255\n")
    field = "Quatreclasses"
    how = ["--field", field, "--map", tmp_path / "map.yaml"] if place == "new_brunswick" else ["--burn", 0]
    assert call("make_masks", vector, "--ortho", folder, "--out", out, *how).code == 0
    meta, _, encoded, fields = pyogrio.raw.read(vector)
    shapes = shapely.from_wkb(encoded)
    values = fields[list(meta["fields"]).index(field)] if place == "new_brunswick" else np.full(len(shapes), "4")
    for ortho in folder.glob("*.tif"):
        with rasterio.open(ortho) as dataset:
            to = dataset.crs
            moved = shapely.transform(
                shapes, lambda p, to=to: np.column_stack(transform(meta["crs"], to, p[:, 0], p[:, 1]))
            )
            rows, columns = np.mgrid[: dataset.height, : dataset.width] + 0.5
            x, y = dataset.transform @ (columns, rows)
            frame = shapely.box(*dataset.bounds)
        expected = np.full(x.shape, 255, np.uint8)
        for shape, value in zip(moved, values, strict=True):
            if shape.intersects(frame):
                expected[shapely.contains_xy(shape, x, y)] = {"1": 1, "2": 1, "3": 0, "4": 0, "255": 255}[value]
        (mask,) = out.rglob(ortho.name)
        assert np.array_equal(read(mask), expected)
        assert {0, 255} <= set(np.unique(expected))
