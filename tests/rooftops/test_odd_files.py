"""Odd files among the pictures, through the commands: each is named alone, the others are done."""

import struct

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint

from common.images.gdal import quiet
from tests.common.images.test_gdal import MOSAIC, grey, lying_tiff, zeros_png

FLAGS = ("--device", "cpu", "--no-prob")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "good.png")
    return folder


def infer(call, trained, folder, out, code):
    result = call("infer", folder, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", out, *FLAGS)
    assert result.code == code and "Traceback" not in result.err, result.err
    assert (out / "good_mask.png").is_file()
    return [line for line in result.err.splitlines() if line.startswith("failed:")], result.err


def test_headers_that_claim_too_much_are_named_and_the_others_done(call, trained, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("common.images.pictures.LARGEST", 2_000_000)
    monkeypatch.setattr("common.images.gdal.LARGEST_PICTURE", 2_000_000)
    zeros_png(pictures / "bomb.png", 1500)
    lying_tiff(pictures / "lie.tif")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(pictures / "rows.bmp")
    data = bytearray((pictures / "rows.bmp").read_bytes())
    data[22:26] = struct.pack("<i", 1_200_000_000)
    (pictures / "rows.bmp").write_bytes(data)
    failed, _ = infer(call, trained, pictures, tmp_path / "out", 1)
    assert len(failed) == 3 and all(name in " ".join(failed) for name in ("bomb.png", "lie.tif", "rows.bmp"))


def test_files_that_point_elsewhere_are_not_followed(call, trained, pictures, tmp_path):
    secret = grey(tmp_path / "secret.tif")
    for name in ("a.tif", "b.png", "c.jpg", "d.jp2"):
        (pictures / name).write_text(MOSAIC.format(relative=0, source=secret))
    failed, _ = infer(call, trained, pictures, tmp_path / "out", 1)
    assert len(failed) == 4


def test_damaged_exif_is_no_reason_to_stop(call, trained, pictures, tmp_path):
    Image.open(pictures / "good.png").save(pictures / "x.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08" + b"\xff" * 20)
    Image.open(pictures / "good.png").save(pictures / "y.jpg", exif=b"Exif\0\0" + b"\xff" * 20)
    result = call("infer", pictures, "--checkpoint", trained[0] / "best_iou.pt", "--output-dir", tmp_path / "o", *FLAGS)
    assert result.code in (0, 1) and "Traceback" not in result.err and (tmp_path / "o" / "good_mask.png").is_file()


def test_control_points_without_an_affine_map_are_spoken_of(call, trained, pictures, tmp_path):
    corners = [GroundControlPoint(row, col, 440000 + col, 4470000 - row) for row in (0, 40) for col in (0, 48)]
    options = {"driver": "GTiff", "count": 3, "height": 40, "width": 48, "dtype": "uint8"}
    with quiet(), rasterio.open(pictures / "gcp.tif", "w", gcps=corners, crs="EPSG:25830", **options) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 40, 48), dtype=np.uint8))
    failed, said = infer(call, trained, pictures, tmp_path / "out", 0)
    (note,) = [line for line in said.splitlines() if "control points" in line]
    assert not failed and note.startswith("note:") and "gcp.tif: has 4 control points and no affine map" in note
