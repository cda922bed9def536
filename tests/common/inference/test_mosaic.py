"""Sheets predicted as one raster, against the raster that they were cut from."""

from __future__ import annotations

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
import torch.nn.functional as F
from affine import Affine
from torch import nn

from common.command.cli import exit_code
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig
from common.inference.predictor import Cut, Predictor
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.outputs import RECORD

TRANSFORM = Affine(0.5, 0, 430000, 0, -0.5, 4580000)
COLORS = {0: (10, 10, 10), 1: (250, 0, 0)}
TAGS = {"checkpoint_sha256": "abc"}
EDGES = ((0, 70, 150), (0, 90, 160))
"""Rows and columns at which the whole is cut."""


class Wide(nn.Module):
    """A logit that depends on pixels 10 around: it sees a sheet's edge."""

    def forward(self, x):
        return (F.avg_pool2d(F.pad(x[:, :1], (10,) * 4, mode="replicate"), 21, 1) - 0.5) * 20


@pytest.fixture
def predictor():
    card = ModelCard("toys", "toy", {}, ["background", "roof"], COLORS, threshold=0.5)
    return Predictor([(Wide(), card)], Precision(torch.device("cpu"), None), cut=Cut(64, 0.4))


def save(path, bands, transform=TRANSFORM, crs="EPSG:25830", mask=None, **options):
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    profile |= {"dtype": bands.dtype.name, "crs": crs, "transform": transform} | options
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(bands)
        if len(bands) == 4:
            dataset.colorinterp = [*dataset.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
        if mask is not None:
            dataset.write_mask(mask)
    return path


def town(kind="plain"):
    """A raster (C, 150, 160) of large blocks; a part of it without data unless plain."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 256, (3, 6, 7), dtype=np.uint8).repeat(25, 1).repeat(25, 2)[:, :150, :160].copy()
    hole = np.zeros((150, 160), bool)
    if kind != "plain":
        hole[55:85, 75:110] = True  # across the corner where four sheets meet
    if kind == "nodata":
        pixels[:, hole] = 0
    if kind == "alpha":
        pixels = np.concatenate([pixels, np.where(hole, 0, 255)[None].astype(np.uint8)])
    return pixels, hole


def cut(folder, pixels, hole, kind, skip=()):
    """Four sheets of a raster."""
    folder.mkdir()
    paths = []
    for row, (top, bottom) in enumerate(zip(EDGES[0], EDGES[0][1:], strict=False)):
        for col, (left, right) in enumerate(zip(EDGES[1], EDGES[1][1:], strict=False)):
            if (row, col) in skip:
                continue
            options = {"nodata": 0} if kind == "nodata" else {}
            if kind == "mask":
                options["mask"] = ~hole[top:bottom, left:right]
            part, place = pixels[:, top:bottom, left:right], TRANSFORM @ Affine.translation(left, top)
            paths.append(save(folder / f"s{row}{col}.tif", part, place, **options))
    return paths


def run(folder, paths, model, **flags):
    config = InferConfig(input=tuple(paths), output_dir=folder, **flags)
    return infer_inputs(config, list(paths), model, folder, config.products(TAGS))


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.transform


def polygons(path):
    _, _, geometry, _ = pyogrio.raw.read(path)
    return sorted(shapely.to_wkt(shapely.normalize(shapely.from_wkb(geometry))))


@pytest.mark.parametrize("kind", ["plain", "nodata", "alpha", "mask"])
def test_sheets_are_predicted_as_the_raster_that_they_are_parts_of(tmp_path, predictor, kind):
    pixels, hole = town(kind)
    options = {"nodata": 0} if kind == "nodata" else {"mask": ~hole} if kind == "mask" else {}
    whole = save(tmp_path / "mosaic.tif", pixels, **options)
    sheets = cut(tmp_path / "sheets", pixels, hole, kind)
    assert run(tmp_path / "one", [whole], predictor, vector="gpkg") == 0
    assert run(tmp_path / "out", sheets, predictor, vector="gpkg", mosaic=True) == 0
    assert run(tmp_path / "apart", sheets, predictor) == 0

    differs = False
    for sheet in sheets:
        for ending in ("_mask.tif", "_prob.tif"):
            found, place = read(tmp_path / "out" / f"{sheet.stem}{ending}")
            with rasterio.open(sheet) as dataset:
                assert place == dataset.transform and found.shape[1:] == dataset.shape
            col, row = map(round, ~TRANSFORM @ (place.c, place.f))
            expected = read(tmp_path / "one" / f"mosaic{ending}")[0]
            inside = expected[:, row : row + found.shape[1], col : col + found.shape[2]]
            np.testing.assert_array_equal(found, inside)
            differs |= not np.array_equal(found, read(tmp_path / "apart" / f"{sheet.stem}{ending}")[0])
        assert (tmp_path / "out" / f"{sheet.stem}_overlay.png").is_file()
    assert differs, "sheets by themselves know nothing of their neighbors: the test would see a seam"
    assert polygons(tmp_path / "out" / "mosaic.gpkg") == polygons(tmp_path / "one" / "mosaic.gpkg")
    assert len(list((tmp_path / "out").iterdir())) == 4 * 3 + 2, "nothing else is left"


def test_between_sheets_there_is_nothing(tmp_path, predictor):
    pixels, hole = town()
    sheets = cut(tmp_path / "sheets", pixels, hole, "plain", skip=[(0, 1)])
    assert run(tmp_path / "out", sheets, predictor, vector="gpkg", mosaic=True) == 0
    _, _, geometry, _ = pyogrio.raw.read(tmp_path / "out" / "mosaic.gpkg")
    gap = shapely.box(430045, 4580000 - 35, 430080, 4580000)
    assert not shapely.intersects(shapely.from_wkb(geometry), shapely.buffer(gap, -0.1)).any()


def test_results_say_of_which_sheet_they_are_and_are_replaced_by_the_next_run(tmp_path, predictor):
    pixels, hole = town()
    sheets = cut(tmp_path / "sheets", pixels, hole, "plain")
    for _ in range(2):
        assert run(tmp_path / "out", sheets, predictor, vector="gpkg", mosaic=True) == 0
    record = [json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines() if line]
    sources = {entry["file"]: entry["source"] for entry in record}
    assert sources["s01_mask.tif"] == "../sheets/s01.tif" and sources["mosaic.gpkg"] == "../sheets"
    with rasterio.open(tmp_path / "out" / "s01_mask.tif") as dataset:
        assert dataset.tags()["source"] == "../sheets/s01.tif"


def test_a_users_file_in_the_way_is_left_alone(tmp_path, predictor, capsys):
    pixels, hole = town()
    sheets = cut(tmp_path / "sheets", pixels, hole, "plain")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s10_mask.tif").write_text("mine")
    assert run(tmp_path / "out", sheets, predictor, mosaic=True) == 1
    assert "s10_mask.tif is in the way" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s10_mask.tif"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crs": "EPSG:25831"}, "in crs"),
        ({"transform": Affine(0.25, 0, 430045, 0, -0.25, 4580000)}, "in pixel"),
        ({"transform": TRANSFORM @ Affine.translation(90.4, 0)}, "off the grid"),
        ({"nodata": 7}, "in nodata"),
        ({"crs": None, "transform": Affine.identity()}, "no georeference"),
        ({"transform": Affine(0.4, 0.3, 430045, 0.3, -0.4, 4580000)}, "not north-up"),
        ({"count": 2}, "in colors"),
    ],
)
def test_sheets_that_do_not_fit_together_are_refused(tmp_path, predictor, change, words, capsys):
    pixels, _ = town()
    count = change.pop("count", 3)
    one = save(tmp_path / "a.tif", pixels[:, :, :90])
    beside = {"transform": TRANSFORM @ Affine.translation(90, 0)}
    other = save(tmp_path / "b.tif", pixels[:count, :, 90:], **beside | change)
    assert exit_code(lambda: run(tmp_path / "out", [one, other], predictor, mosaic=True)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert words in line and "b.tif" in line
    assert not (tmp_path / "out").exists()
