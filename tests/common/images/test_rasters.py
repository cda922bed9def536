from __future__ import annotations

import re

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from common.images.ranges import dtype_range, range_warning, scale_to_unit
from common.images.rasters import read_label, read_raster

TRANSFORM = Affine(0.25, 0.0, 430000.0, 0.0, -0.25, 4580000.0)
PALETTE = {0: (200, 200, 200), 1: (0, 160, 60)}


def noise(shape, dtype=np.uint8, seed=0):
    high = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    values = np.random.default_rng(seed).random(shape) * high
    return values.astype(dtype)


def save_tiff(path, bands, *, crs="EPSG:25830", transform=TRANSFORM, mask=None, colormap=None, **options):
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    if transform is not None:
        profile |= {"crs": crs, "transform": transform}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", dtype=bands.dtype.name, **profile, **options) as dataset,
    ):
        if colormap is not None:
            dataset.write_colormap(1, colormap)
        dataset.write(bands)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def georeferenced(tmp_path, shape=(20, 30), **options):
    return read_raster(save_tiff(tmp_path / "ortho.tif", noise((3, *shape)), **options))


# Reading pictures


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(("mode", "bands"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_grey_and_rgb_come_back_exactly(tmp_path, mode, bands, suffix):
    pixels = noise((13, 17) if bands == 1 else (13, 17, 3))
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(pixels, mode if bands == 3 else None).save(path, **options)
    raster = read_raster(path)
    if suffix == ".webp" and bands == 1:  # the format has no grey
        assert raster.data.shape == (3, 13, 17)
        return
    expected = pixels[None] if bands == 1 else pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(raster.data, expected)
    assert raster.data.dtype == np.uint8 and raster.valid.shape == (13, 17) and raster.valid.all()
    assert raster.transform is None and raster.crs is None and raster.path == path


def test_jpeg_is_read_in_rgb_order(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8) + np.array([250, 120, 10], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    raster = read_raster(tmp_path / "x.jpg")
    assert np.abs(raster.data.mean((1, 2)) - [250, 120, 10]).max() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_becomes_the_valid_mask(tmp_path, suffix, bands):
    pixels = noise((13, 17, bands))
    pixels[..., -1] = 255
    pixels[:4, :, -1] = 0
    pixels[5, 5, -1] = 1
    Image.fromarray(pixels, "LA" if bands == 2 else "RGBA").save(tmp_path / f"x{suffix}")
    raster = read_raster(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(raster.data, pixels[..., :-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(raster.valid, np.indices((13, 17))[0] >= 4)


def palette_picture(path, colors, **options):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % len(colors)
    image = Image.fromarray(indices)
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path, **options)
    return indices


COLORS = [(0, 0, 0), (255, 0, 0), (9, 9, 9), (1, 2, 3)]


def test_a_palette_picture_is_expanded_to_rgb(tmp_path):
    indices = palette_picture(tmp_path / "x.png", COLORS)
    raster = read_raster(tmp_path / "x.png")
    np.testing.assert_array_equal(raster.data, np.array(COLORS)[indices].transpose(2, 0, 1))
    assert raster.valid.all()


def test_a_transparent_palette_color_is_not_valid(tmp_path):
    indices = palette_picture(tmp_path / "x.png", COLORS, transparency=2)
    raster = read_raster(tmp_path / "x.png")
    assert raster.data.shape == (3, 3, 4)
    np.testing.assert_array_equal(raster.valid, indices != 2)


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_color_without_palette_is_not_valid(tmp_path, mode, color):
    image = Image.new(mode, (4, 3), 0)
    image.putpixel((1, 2), color)
    image.save(tmp_path / "x.png", transparency=color)
    raster = read_raster(tmp_path / "x.png")
    assert len(raster.data) == len(mode)
    assert np.argwhere(~raster.valid).tolist() == [[2, 1]]


def test_a_bilevel_picture_is_black_and_white(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "x.png").data, np.eye(4)[None] * 255)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_pngs_keep_all_bits(tmp_path, channels):
    pixels = noise((6, 7, channels), np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(pixels.squeeze()))
    raster = read_raster(tmp_path / "x.png")
    bands = channels - (channels in (2, 4))
    assert raster.data.dtype == np.uint16 and raster.valid.all()
    np.testing.assert_array_equal(raster.data, pixels[..., :bands].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    pixels = noise((6, 9, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    raster = read_raster(tmp_path / "x.png")
    np.testing.assert_array_equal(raster.data, turn(pixels).transpose(2, 0, 1))
    assert raster.valid.shape == raster.data.shape[1:]


def test_a_cmyk_picture_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    red, green, blue = read_raster(tmp_path / "x.jpg").data.mean((1, 2))
    assert red > 240 and green < 20 and blue < 20


def test_a_large_sheet_is_no_decompression_bomb(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")  # 2.2 times Pillow's limit, which it checks on opening
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (20000, 10000)


def test_a_picture_with_a_world_file_is_georeferenced(tmp_path):
    pixels = noise((6, 9, 3))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.pgw").write_text("0.25\n0\n0\n-0.25\n430000.125\n4579999.875\n")
    raster = read_raster(tmp_path / "x.png")
    assert raster.transform == TRANSFORM
    np.testing.assert_array_equal(raster.data, pixels.transpose(2, 0, 1))


def test_transparent_palette_colors_of_a_georeferenced_picture_are_not_valid(tmp_path):
    indices = palette_picture(tmp_path / "x.png", COLORS, transparency=bytes([0, 255, 0, 255]))
    (tmp_path / "x.pgw").write_text("0.25\n0\n0\n-0.25\n430000.125\n4579999.875\n")
    raster = read_raster(tmp_path / "x.png")
    np.testing.assert_array_equal(raster.valid, indices % 2 == 1)
    np.testing.assert_array_equal(raster.data, np.array(COLORS)[indices].transpose(2, 0, 1))


# Reading TIFF


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_tiffs_keep_values_and_georeference(tmp_path, dtype, bands):
    data = noise((bands, 19, 23), dtype)
    raster = read_raster(save_tiff(tmp_path / "x.tif", data))
    np.testing.assert_array_equal(raster.data, data)
    assert raster.data.dtype == dtype and raster.valid.all()
    assert raster.transform == TRANSFORM and raster.crs.to_epsg() == 25830
    assert raster.nodata is None


def test_a_tiff_without_georeference_has_no_transform(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", noise((9, 11), np.uint16))
    raster = read_raster(tmp_path / "x.tif")
    assert raster.transform is None and raster.crs is None
    np.testing.assert_array_equal(raster.data[0], noise((9, 11), np.uint16))


def test_nodata_is_not_valid_where_every_band_has_it(tmp_path):
    data = noise((3, 9, 11)) | 1
    data[:, :3] = 0
    data[0, 5] = 0  # black in one band only: a color, not nodata
    raster = read_raster(save_tiff(tmp_path / "x.tif", data, nodata=0))
    assert raster.nodata == 0
    np.testing.assert_array_equal(raster.valid, np.indices((9, 11))[0] >= 3)


@pytest.mark.parametrize("declared", [True, False])
def test_nan_is_never_valid(tmp_path, declared):
    data = noise((2, 9, 11), np.float32)
    data[0, 2, 3] = np.nan
    data[1, 4, 5] = np.inf
    path = save_tiff(tmp_path / "x.tif", data, **({"nodata": np.nan} if declared else {}))
    raster = read_raster(path)
    assert np.argwhere(~raster.valid).tolist() == [[2, 3], [4, 5]]
    assert np.isfinite(scale_to_unit(raster.data, raster.valid)).all()


def test_a_mask_band_counts(tmp_path):
    mask = np.eye(16, dtype=bool)
    raster = read_raster(save_tiff(tmp_path / "x.tif", noise((3, 16, 16)), mask=mask))
    np.testing.assert_array_equal(raster.valid, mask)


def test_a_fourth_band_is_alpha_only_if_declared(tmp_path):
    data = noise((4, 9, 11))
    data[3, 0] = 0
    infrared = read_raster(save_tiff(tmp_path / "nir.tif", data, photometric="rgb", alpha="no"))
    np.testing.assert_array_equal(infrared.data, data)
    assert infrared.valid.all()
    alpha = read_raster(save_tiff(tmp_path / "alpha.tif", data, photometric="rgb", alpha="yes"))
    np.testing.assert_array_equal(alpha.data, data[:3])
    np.testing.assert_array_equal(alpha.valid, data[3] > 0)


def test_a_tiff_color_table_is_expanded_in_images(tmp_path):
    indices = (np.arange(12, dtype=np.uint8) % 3).reshape(1, 3, 4)
    colormap = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255), 2: (70, 80, 90, 255)}
    raster = read_raster(save_tiff(tmp_path / "x.tif", indices, colormap=colormap, nodata=2))
    expected = np.array([colormap[i][:3] for i in range(3)])[indices[0]].transpose(2, 0, 1)
    np.testing.assert_array_equal(raster.data, expected)
    np.testing.assert_array_equal(raster.valid, indices[0] != 2)


@pytest.mark.parametrize("compression", ["jpegxl", "png", "zstd", "lzma"])
def test_odd_tiff_compressions_are_read(tmp_path, compression):
    pixels = noise((40, 50, 3))
    options = {"compressionargs": {"lossless": True}} if compression == "jpegxl" else {}
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", compression=compression, **options)
    np.testing.assert_array_equal(read_raster(tmp_path / "x.tif").data, pixels.transpose(2, 0, 1))


def test_alpha_of_odd_tiff_compressions_is_taken_off(tmp_path):
    pixels = noise((40, 50, 4))
    pixels[:9, :, 3] = 0
    pixels[9:, :, 3] = 255
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", compression="png", extrasamples=["unassalpha"])
    raster = read_raster(tmp_path / "x.tif")
    np.testing.assert_array_equal(raster.data, pixels[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(raster.valid, np.indices((40, 50))[0] >= 9)


def test_pages_that_are_channels_are_bands_and_pages_that_are_frames_are_refused(tmp_path):
    pages = noise((2, 9, 11), np.uint16)
    tifffile.imwrite(tmp_path / "channels.tif", pages, imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_raster(tmp_path / "channels.tif").data, pages)
    tifffile.imwrite(tmp_path / "frames.tif", pages, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "unknown.tif", noise((4, 9, 11)), photometric="minisblack")
    for name in ("frames", "unknown"):
        with pytest.raises(ValueError, match=rf"{name}\.tif: .*stack with axes [TQ]YX.*save single frames"):
            read_raster(tmp_path / f"{name}.tif")


# Damaged files


def damaged(tmp_path, kind):
    if kind.startswith("text"):
        (tmp_path / kind).write_text("not an image")
    elif kind == "empty.png":
        (tmp_path / kind).write_bytes(b"")
    else:
        if kind.endswith(".tif"):
            save_tiff(tmp_path / kind, noise((3, 64, 64)))
        elif kind.startswith("cut16"):
            (tmp_path / kind).write_bytes(imagecodecs.png_encode(noise((64, 64, 3), np.uint16)))
        else:
            Image.fromarray(noise((64, 64, 3))).save(tmp_path / kind)
        content = (tmp_path / kind).read_bytes()
        (tmp_path / kind).write_bytes(content[: len(content) // 2])
    return tmp_path / kind


@pytest.mark.parametrize("reader", [read_raster, read_label])
@pytest.mark.parametrize(
    "kind", ["text.png", "text.tif", "empty.png", "cut.png", "cut.jpg", "cut.tif", "cut16.png", "cut.webp"]
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, kind, reader, capfd):
    path = damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=r"cannot be read as an image: .+; remove or replace it") as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert "See previous exception" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_only_the_first_line_of_a_decoders_complaint_is_shown(tmp_path, monkeypatch):
    def complain(*args):
        raise RuntimeError("first line.\nsecond line")

    monkeypatch.setattr("common.images.rasters.read_picture", complain)
    with pytest.raises(ValueError, match=r": first line; remove or replace it$"):
        read_raster(touch(tmp_path, "x.png") / "x.png")


def test_a_missing_file_or_a_folder_is_no_image(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_raster(path)


def test_complex_values_are_refused(tmp_path):
    path = save_tiff(tmp_path / "x.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(ValueError, match=r"x\.tif: has complex64 values"):
        read_raster(path)


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_labels_keep_their_values(tmp_path, dtype, suffix):
    label = noise((7, 9), dtype)
    Image.fromarray(label).save(tmp_path / f"x{suffix}")
    result = read_label(tmp_path / f"x{suffix}")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, label)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_labels_are_three_colors_without_alpha(tmp_path, suffix, mode):
    pixels = noise((7, 9, len(mode)))
    Image.fromarray(pixels, mode).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_label(tmp_path / f"x{suffix}"), pixels[..., :3])


def test_a_palette_label_is_its_colors_or_its_indices(tmp_path):
    indices = palette_picture(tmp_path / "x.png", COLORS)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), np.array(COLORS)[indices])
    np.testing.assert_array_equal(read_label(tmp_path / "x.png", colors=False), indices)


def test_a_grey_palette_label_is_its_grey_values(tmp_path):
    greys = np.array([0, 255, 7, 100])
    indices = palette_picture(tmp_path / "x.png", [(grey, grey, grey) for grey in greys])
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), greys[indices])
    np.testing.assert_array_equal(read_raster(tmp_path / "x.png").data, np.stack([greys[indices]] * 3))
    np.testing.assert_array_equal(read_label(tmp_path / "x.png", colors=False), indices)


def test_whole_floats_are_a_label_and_others_are_not(tmp_path):
    data = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    label = read_label(save_tiff(tmp_path / "x.tif", data))
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, data[0])
    for wrong in (0.5, np.nan, np.inf):
        data[0, 1, 1] = wrong
        with pytest.raises(ValueError, match=r"x\.tif: label values are not whole numbers"):
            read_label(save_tiff(tmp_path / "x.tif", data))


def test_labels_with_other_band_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tif: a label has 1 band .* this file has 5"):
        read_label(save_tiff(tmp_path / "x.tif", noise((5, 4, 4))))


# Value ranges


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.uint8, (0, 255)), (np.uint16, (0, 65535)), (np.int16, (0, 32767)), (np.float32, (0, 1)), (bool, (0, 1))],
)
def test_number_types_have_a_range(dtype, expected):
    assert dtype_range(dtype) == expected


@settings(deadline=None, max_examples=80)
@given(
    data=hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.uint32, np.int16, np.float32]), (2, 3, 4)),
    valid=hnp.arrays(bool, (3, 4)),
    value_range=st.none() | st.tuples(st.integers(-100, 100), st.integers(101, 70000)),
)
def test_scaling_follows_the_range_and_nothing_else(data, valid, value_range):
    if data.dtype.kind == "f":
        valid &= ~np.isnan(data).any(axis=0)
    low, high = dtype_range(data.dtype) if value_range is None else value_range
    expected = np.where(valid, np.clip((np.nan_to_num(data.astype(np.float64)) - low) / (high - low), 0, 1), 0)
    result = scale_to_unit(data, valid, value_range)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_scaling_does_not_touch_its_input_and_refuses_nan_and_bad_ranges():
    data = np.ones((1, 2, 2), np.float32)
    scale_to_unit(data, np.zeros((2, 2), bool))
    assert (data == 1).all()
    data[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 values marked as valid are NaN"):
        scale_to_unit(data, np.ones((2, 2), bool))
    for bad in ((5, 5), (9, 1), (0, np.inf), (np.nan, 1)):
        with pytest.raises(ValueError, match="--input-range needs two numbers LO < HI, got"):
            scale_to_unit(data, np.ones((2, 2), bool), bad)


@pytest.mark.parametrize(
    ("data", "value_range", "expected"),
    [
        (np.array([0, 4095], np.uint16), None, "values 0 to 4095 .* range 0 to 65535, only 6.2% of it is used"),
        (np.array([0, 4095], np.uint16), (0, 4095), None),
        (np.array([0, 30000], np.uint16), None, None),
        (np.array([0.0, 90.0, 255.0], np.float32), None, "67% of them lie outside; set --input-range 0 255"),
        (np.array([0.1, 0.9], np.float32), None, None),
    ],
)
def test_a_range_that_hardly_fits_is_warned_about(data, value_range, expected):
    data = data.reshape(1, 1, -1)
    warning = range_warning(data, np.ones(data.shape[1:], bool), value_range)
    if expected is None:
        assert warning is None
    else:
        assert warning is not None and re.search(expected, warning) and "\n" not in warning


def test_invalid_pixels_do_not_count_for_the_range():
    data = np.array([[[0, 100, 60000]]], np.uint16)
    assert "0 to 100" in range_warning(data, np.array([[True, True, False]]))
    assert range_warning(data, np.zeros((1, 3), bool)) is None
