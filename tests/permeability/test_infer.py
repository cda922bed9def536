import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from PIL import Image

from common.networks.checkpoint import load_checkpoint
from tests.permeability.sheets import CRS, LEFT, TOP, patches, write_raster


@pytest.fixture
def infer(trained, call, tmp_path):
    def run(*inputs, out="out"):
        return call("infer", *inputs, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / out)

    return run


def outlines(path):
    meta, _, geometry, columns = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"].tolist(), columns, strict=True))


@pytest.mark.parametrize("kind", ["shp", "gpkg"])
def test_a_sheet_gives_mask_polygons_and_figure(infer, easy, tmp_path, kind):
    source = easy / "INSUMOS/ORTOFOTOS/sheet4.tif"
    result = infer(source, "--vector", kind)
    assert result.code == 0, result.err
    with rasterio.open(source) as photo, rasterio.open(tmp_path / "out" / "sheet4_mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape, mask.nodata) == (photo.crs, photo.transform, photo.shape, 255)
        found, colors = mask.read(1), mask.colormap(1)
    assert colors[1][:3] == (0, 128, 0) and colors[0][:3] == (211, 211, 211)
    with rasterio.open(easy / "DATA/OUTPUT/MASCARAS/test/suelo4.tif") as mask:
        assert np.mean(mask.read(1) == found) > 0.8
    meta, polygons, fields = outlines(tmp_path / "out" / f"sheet4.{kind}")
    assert pyogrio.read_info(tmp_path / "out" / f"sheet4.{kind}")["crs"] == CRS and meta["geometry_type"].endswith(
        "Polygon"
    )
    assert np.allclose(fields["area"], shapely.area(polygons)) and shapely.is_valid(polygons).all()
    for index, name in enumerate(("No permeable", "Permeable")):
        mine = fields["class_val"] == index
        assert shapely.area(polygons[mine]).sum() == pytest.approx((found == index).sum() * 0.25)
        assert set(fields["class_name"][mine]) <= {name}
    figure = np.asarray(Image.open(tmp_path / "out" / "sheet4_figure.png").convert("RGB")).reshape(-1, 3)
    assert (figure == (0, 128, 0)).all(axis=1).any() and (figure == (211, 211, 211)).all(axis=1).any()


def test_small_polygons_are_left_out(infer, easy, tmp_path):
    assert infer(easy / "INSUMOS/ORTOFOTOS/sheet4.tif", "--vector", "gpkg", "--min-area", "30").code == 0
    assert outlines(tmp_path / "out" / "sheet4.gpkg")[2]["area"].min() >= 30


def test_a_window_is_that_part_of_the_sheet(infer, easy, tmp_path):
    source = easy / "INSUMOS/ORTOFOTOS/sheet4.tif"
    assert infer(source).code == 0
    result = infer(source, "--window", "30", "20", "64", "50", "--vector", "shp")
    assert result.code == 0, result.err
    with rasterio.open(tmp_path / "out" / "sheet4_30_20_64_50_mask.tif") as part:
        found, place = part.read(1), part.transform
        assert (part.shape, part.crs) == ((50, 64), CRS)
    assert (place.c, place.f) == (LEFT + 4000 + 15, TOP - 10)
    with rasterio.open(tmp_path / "out" / "sheet4_mask.tif") as whole:
        assert np.mean(whole.read(1)[20:70, 30:94] == found) > 0.9
    assert (tmp_path / "out" / "sheet4_30_20_64_50.shp").is_file()
    assert (tmp_path / "out" / "sheet4_30_20_64_50_figure.png").is_file()


def test_windows_keep_nodata_masks_and_bit_depth(infer, tmp_path):
    image = patches(60, 70)[0].astype(np.uint16) * 257
    image[:, :10] = 9
    source = write_raster(tmp_path / "deep.tif", image, nodata=9)
    assert infer(source, "--window", "5", "0", "40", "30").code == 0
    with rasterio.open(tmp_path / "out" / "deep_5_0_40_30_mask.tif") as mask:
        found = mask.read(1)
    assert (found[:10] == 255).all() and (found[10:] != 255).all()
    picture = np.dstack([np.moveaxis(patches(60, 70)[0], 0, -1), np.full((60, 70), 255, np.uint8)])
    picture[:, :12, 3] = 0
    Image.fromarray(picture).save(tmp_path / "clear.png")
    assert infer(tmp_path / "clear.png", "--window", "5", "0", "40", "30").code == 0
    found = np.asarray(Image.open(tmp_path / "out" / "clear_5_0_40_30_mask.png"))
    assert (found[:, :7] == 255).all() and (found[:, 7:] != 255).all()
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(write_raster(tmp_path / "masked.tif", patches(60, 70)[0]), "r+") as dataset,
    ):
        dataset.write_mask(np.where(np.arange(70) < 12, 0, 255).astype(np.uint8)[None].repeat(60, 0))
    assert infer(tmp_path / "masked.tif", "--window", "5", "0", "40", "30").code == 0
    with rasterio.open(tmp_path / "out" / "masked_5_0_40_30_mask.tif") as mask:
        found = mask.read(1)
    assert (found[:, :7] == 255).all() and (found[:, 7:] != 255).all()


def test_one_bad_input_does_not_stop_the_others(infer, tmp_path):
    write_raster(tmp_path / "in" / "good.tif", patches(60, 70)[0])
    write_raster(tmp_path / "in" / "small.tif", patches(20, 20)[0])
    (tmp_path / "in" / "text.tif").write_text("no picture")
    result = infer(tmp_path / "in", "--tta")
    result.mistake("text.tif", code=1)
    assert {path.name for path in (tmp_path / "out").glob("*_mask.tif")} == {"good_mask.tif", "small_mask.tif"}
    windows = infer(tmp_path / "in", "--window", "0", "0", "40", "40", out="windows")
    assert windows.code == 1 and "small.tif" in windows.err and "text.tif" in windows.err
    assert [path.name for path in (tmp_path / "windows").glob("*_mask.tif")] == ["good_0_0_40_40_mask.tif"]


def test_mistakes_are_told(infer, easy, call, tmp_path):
    source = easy / "INSUMOS/ORTOFOTOS/sheet4.tif"
    infer().mistake("no INPUT")
    infer(tmp_path / "no.tif").mistake("no.tif")
    infer(source, "--window", "-1", "0", "5", "5").mistake("--window -1 0 5 5")
    infer(source, "--window", "0", "0", "0", "5").mistake("--window")
    infer(source, "--window", "100", "0", "50", "5").mistake("--window 100 0 50 5", "128 x 112", code=1)
    untrained = call("infer", source)
    assert untrained.code == 0 and "ships" in untrained.err and "permeability/train.py" in untrained.err


def test_tiles_are_the_sources_where_nothing_is_planned(trained, easy, call, tmp_path, monkeypatch):
    from common.inference.predictor import Cut
    from permeability import infer

    seen = []
    original = infer.infer_inputs
    monkeypatch.setattr(
        infer, "infer_inputs", lambda *args, **options: seen.append(args[2]) or original(*args, **options)
    )
    call("infer", easy / "INSUMOS/ORTOFOTOS/sheet4.tif", "--checkpoint", trained[0] / "best_iou.pt")
    (predictor,) = seen
    assert predictor.cut == Cut(usual=512)
    assert predictor.threshold == load_checkpoint(trained[0] / "best_iou.pt")[0].threshold > 0
