import json

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from common.images.rasters import read_raster


@pytest.fixture
def pictures(tmp_path, roofs):
    """All kinds of inputs, one of them no picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = np.asarray(Image.open(roofs / "images" / "images" / "town1_1.png"))
    Image.fromarray(np.tile(image, (4, 4, 1))).save(folder / "large.jpg", quality=95)
    tifffile.imwrite(folder / "sixteen.tif", image.astype(np.uint16) * 257, photometric="rgb")
    alpha = np.full((96, 112, 1), 255, np.uint8)
    alpha[:, 80:] = 0
    Image.fromarray(np.concatenate([image, alpha], axis=2)).save(folder / "alpha.png")
    Image.fromarray(image[:30, :40]).save(folder / "tiny.png")
    Image.fromarray(image[:1, :1]).save(folder / "pixel.png")
    Image.fromarray(image[:95, :63]).save(folder / "naïve façade 1.png")
    (folder / "text.png").write_text("not a picture")
    return folder


def test_every_good_file_is_done_and_the_bad_one_named(trained, pictures, roofs, call, tmp_path):
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    out = tmp_path / "out"
    result = call("infer", pictures, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", out)
    result.mistake("text.png", code=1)
    shapes = {"large": (384, 448), "sixteen": (96, 112), "alpha": (96, 112), "tiny": (30, 40), "pixel": (1, 1)}
    masks = {}
    for stem, shape in {**shapes, "naïve façade 1": (95, 63)}.items():
        masks[stem] = np.asarray(Image.open(out / f"{stem}_mask.png"))
        assert masks[stem].shape == shape
        assert np.asarray(Image.open(out / f"{stem}_overlay.png")).shape == (*shape, 3)
        probability = tifffile.imread(out / f"{stem}_prob.tif")
        assert (probability.shape, probability.dtype) == (shape, np.float32)
    assert not (out / "text_mask.png").exists()
    assert before == {path: path.read_bytes() for path in pictures.iterdir()}
    truth = tifffile.imread(roofs / "label" / "label" / "town1_1_label.tif") > 0
    assert (masks["sixteen"] == truth).mean() > 0.85
    assert (masks["alpha"][:, 80:] == 255).all()
    assert (masks["large"][96:192, 112:224] == masks["sixteen"]).mean() > 0.85


def test_georeferenced_in_is_georeferenced_out(trained, roofs, call, tmp_path):
    path, out = tmp_path / "geo.tif", tmp_path / "out"
    image = np.moveaxis(np.asarray(Image.open(roofs / "images" / "images" / "town2_0.png")), -1, 0).copy()
    image[:, :, :10] = 0
    options = {"driver": "GTiff", "height": 96, "width": 112, "count": 3, "dtype": "uint8", "nodata": 0}
    place = rasterio.Affine(0.1, 0, 3e5, 0, -0.1, 58e5)
    with rasterio.open(path, "w", crs="EPSG:25833", transform=place, **options) as dataset:
        dataset.write(image)
    flags = ("--output-dir", out, "--vector", "geojson", "--min-area", 0.1)
    result = call("infer", path, "--checkpoint", trained[0] / "best_iou.pt", *flags)
    assert result.code == 0, result.err
    assert json.loads((out / "geo.geojson").read_text())["features"]
    with rasterio.open(out / "geo_mask.tif") as mask:
        assert (mask.crs.to_epsg(), mask.transform, mask.shape) == (25833, place, (96, 112))
        assert (mask.read(1)[:, :10] == 255).all()
        assert len(mask.tags()["checkpoint_sha256"]) == 16
        assert float(mask.tags()["threshold"]) > 0
    values = read_raster(out / "geo_prob.tif").data
    assert np.isnan(values[..., :10]).all()
    assert np.isfinite(values[..., 10:]).all()


def test_a_picture_is_read_at_the_training_scale(trained, roofs, call, tmp_path):
    """Twice as large, and read at half of the scale: the same answer."""
    image = Image.open(roofs / "images" / "images" / "town1_1.png")
    image.save(tmp_path / "one.png")
    image.resize((224, 192), Image.Resampling.NEAREST).save(tmp_path / "two.png")
    best, out = trained[0] / "best_iou.pt", tmp_path / "out"
    scale = 64 / (96 * 112) ** 0.5
    flags = ("--checkpoint", best, "--output-dir", out, "--amp", "off")
    assert call("infer", tmp_path / "one.png", *flags).code == 0
    assert call("infer", tmp_path / "two.png", *flags, "--scale", scale / 2).code == 0
    one, two = (tifffile.imread(out / f"{name}_prob.tif") for name in ("one", "two"))
    assert np.abs(one - two[::2, ::2]).mean() < 0.03


def test_the_newest_run_is_taken_and_mistakes_are_one_line(trained, roofs, call, tmp_path):
    picture = roofs / "images" / "images" / "town0_0.png"
    run = tmp_path / "here" / "runs" / "rooftops" / "demo-1"
    run.mkdir(parents=True)
    (run / "best_iou.pt").write_bytes((trained[0] / "best_iou.pt").read_bytes())
    result = call("infer", picture, cwd=tmp_path / "here")
    assert result.code == 0, result.err
    assert "demo-1" in result.err
    assert (tmp_path / "here" / "outputs" / "rooftops" / "town0_0_mask.png").is_file()
    call("infer", "--checkpoint", run / "best_iou.pt").mistake("INPUT")
    call("infer", tmp_path / "no.png", "--checkpoint", run / "best_iou.pt").mistake("no.png")
    call("infer", picture, "--checkpoint", tmp_path / "no.pt").mistake("no.pt")
    call("infer", picture, "--checkpoint", run / "best_iou.pt", "--threshold", 2).mistake("--threshold 2")
