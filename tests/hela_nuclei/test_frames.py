import logging
import os
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from hela_nuclei.frames import check_axes, count_pixels, read_stack, scale_frame

RNG = np.random.default_rng(0)


def values(*shape, dtype="u2"):
    return RNG.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


CASES = {  # name: (shape, how it is written, flags, expected (T, H, W) from the array or None without time, channels)
    "one frame": ((20, 30), {}, {}, lambda a: a[None], False),
    "8 bit": ((20, 30), {"dtype": "u1"}, {}, lambda a: a[None], False),
    "float": ((20, 30), {"dtype": "f4"}, {}, lambda a: a[None], False),
    "big-endian": ((20, 30), {"byteorder": ">"}, {}, lambda a: a[None], False),
    "lzw": ((20, 30), {"compression": "lzw"}, {}, lambda a: a[None], False),
    "deflate": ((7, 20, 30), {"compression": "zlib", "predictor": True}, {}, lambda a: a, True),
    "pages": ((7, 20, 30), {}, {}, lambda a: a, True),
    "pages without metadata": ((7, 20, 30), {"metadata": None}, {}, lambda a: a, True),
    "named": ((3, 20, 30), {"photometric": "minisblack", "metadata": {"axes": "TYX"}}, {}, lambda a: a, True),
    "one point in time": ((1, 20, 30), {"metadata": {"axes": "TYX"}}, {}, lambda a: a, True),
    "YXS": ((20, 30, 3), {"photometric": "rgb"}, {}, lambda a: a[None, ..., 1], False),
    "YXS, last": ((20, 30, 3), {"photometric": "rgb"}, {"channel": 2}, lambda a: a[None, ..., 2], False),
    "RGBA": ((20, 30, 4), {"photometric": "rgb", "dtype": "u1"}, {}, lambda a: a[None, ..., 1], False),
    "grey and alpha": (
        (20, 30, 2), {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}, {},
        lambda a: a[None, ..., 0], False,
    ),
    "CYX": ((2, 20, 30), {"metadata": {"axes": "CYX"}}, {"channel": 1}, lambda a: a[None, 1], False),
    "TYXC": ((4, 20, 30, 3), {"metadata": {"axes": "TYXC"}}, {}, lambda a: a[..., 1], True),
    "colored pages": ((4, 20, 30, 3), {"photometric": "rgb"}, {}, lambda a: a[..., 1], True),
    "ImageJ": ((4, 2, 20, 30), {"imagej": True, "metadata": {"axes": "TCYX"}}, {"channel": 0}, lambda a: a[:, 0], True),
    "ImageJ time": ((4, 20, 30), {"imagej": True, "metadata": {"axes": "TYX"}}, {}, lambda a: a, True),
    "OME": ((4, 2, 20, 30), {"ome": True, "metadata": {"axes": "TCYX"}}, {"channel": 1}, lambda a: a[:, 1], True),
    "OME, one slice": ((4, 1, 20, 30), {"ome": True, "metadata": {"axes": "TZYX"}}, {}, lambda a: a[:, 0], True),
    "three frames": ((3, 20, 30), {"photometric": "minisblack"}, {"axes": "TYX"}, lambda a: a, True),
    "three channels": ((3, 20, 30), {"photometric": "minisblack"}, {"axes": "CYX"}, lambda a: a[None, 1], False),
    "columns of two": ((20, 30, 2), {"photometric": "minisblack"}, {"channel": 1}, lambda a: a[None, ..., 1], False),
    "all": ((4, 2, 20, 30), {"photometric": "minisblack"}, {"axes": "tcyx", "channel": 0}, lambda a: a[:, 0], True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_axes(name, tmp_path):
    shape, options, flags, expected, has_time = CASES[name]
    options = dict(options)
    kind = options.pop("dtype", "u2")
    array = RNG.random(shape, np.float32) if kind == "f4" else values(*shape, dtype=kind)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    stack = read_stack(tmp_path / "a.tif", **flags)
    np.testing.assert_array_equal(stack.frames, expected(array))
    assert stack.has_time == has_time
    assert stack.frames.dtype == kind
    assert stack.frames.dtype.isnative
    assert count_pixels(tmp_path / "a.tif", flags.get("axes")) == stack.frames.size


AMBIGUOUS = {
    "three pages": ((3, 20, 30), {"photometric": "minisblack"}, {}, "--axes"),
    "three pages without metadata": ((3, 20, 30), {"photometric": "minisblack", "metadata": None}, {}, "--axes"),
    "three planes, tifffile's guess": (
        (3, 20, 30),
        {"photometric": "rgb", "planarconfig": "separate"},
        {},
        "--axes",
    ),
    "two channels": ((20, 30, 2), {"photometric": "minisblack"}, {}, "--channel 0...1"),
    "two named channels": ((2, 20, 30), {"metadata": {"axes": "CYX"}}, {}, "--channel 0...1"),
    "four channels": ((4, 20, 30), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, {}, "--channel 0...3"),
    "no such channel": ((20, 30, 3), {"photometric": "rgb"}, {"channel": 3}, "--channel 3"),
    "channel of one": ((20, 30), {}, {"channel": 1}, "--channel 1"),
    "depth": ((5, 20, 30), {"imagej": True, "metadata": {"axes": "ZYX"}}, {}, "--axes"),
    "four dimensions": ((4, 2, 20, 30), {"photometric": "minisblack"}, {}, "--axes"),
    "axes of another shape": ((5, 20, 30), {}, {"axes": "TYXC"}, "does not fit"),
    "complex": ((20, 30), {"dtype": "c8"}, {}, "no image"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_is_refused_with_the_remedy(name, tmp_path):
    shape, options, flags, words = AMBIGUOUS[name]
    options = dict(options)
    array = np.zeros(shape, options.pop("dtype", "u2"))
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ValueError) as error:
        read_stack(tmp_path / "a.tif", **flags)
    assert words in str(error.value)
    assert str(tmp_path / "a.tif") in str(error.value)
    assert "\n" not in str(error.value)


def test_axes_that_no_file_has():
    for axes in ("QYX", "TYY", "TC", "YXZ"):
        with pytest.raises(ValueError, match="--axes"):
            check_axes(axes)
    check_axes("cyx")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"imagej": True}, {"ome": True}], ids=str)
def test_a_stack_cut_short_is_whole_or_one_clear_line(options, compression, tmp_path, caplog, capfd):
    array = values(7, 20, 30)
    compression = None if "imagej" in options else compression
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, **{"metadata": {"axes": "TYX"}, **options})
    data = (tmp_path / "a.tif").read_bytes()
    refused = 0
    for share in (0, 0.001, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.99):
        (tmp_path / "b.tif").write_bytes(data[: int(len(data) * share)])
        try:
            np.testing.assert_array_equal(read_stack(tmp_path / "b.tif").frames, array)
        except ValueError as error:
            refused += 1
            assert "b.tif" in str(error)
            assert "\n" not in str(error)
    assert refused >= 8
    assert not caplog.records
    assert capfd.readouterr().err == ""
    assert logging.getLogger("tifffile").propagate


def test_several_series_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(values(20, 30), metadata=None)
        writer.write(values(40, 50), metadata=None)
    with pytest.raises(ValueError, match="2 image series"):
        read_stack(tmp_path / "a.tif")


def test_pictures(tmp_path):
    rgba = values(20, 30, 4, dtype="u1")
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(values(20, 30)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_stack(tmp_path / "rgba.png").frames, rgba[None, ..., 1])
    np.testing.assert_array_equal(read_stack(tmp_path / "grey.png").frames, rgba[None, ..., 0])
    assert read_stack(tmp_path / "deep.png").frames.dtype == "u2"
    assert count_pixels(tmp_path / "rgba.png") == 600
    (tmp_path / "bad.png").write_bytes((tmp_path / "grey.png").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"bad\.png"):
        read_stack(tmp_path / "bad.png")
    assert count_pixels(tmp_path / "none.tif") == 0


def test_scaling():
    frame = np.array([[33000, 34000], [36000, 37000]], "u2")
    np.testing.assert_allclose(scale_frame(frame), [[0, 0.25], [0.75, 1]])
    np.testing.assert_allclose(scale_frame(frame, (34000, 36000)), [[0, 0], [1, 1]])
    assert not scale_frame(np.full((4, 5), 7, "u1")).any()
    odd = np.array([[np.nan, 1.0], [3.0, np.inf]])
    np.testing.assert_allclose(scale_frame(odd), [[0, 0], [1, 1]])
    assert not scale_frame(np.full((2, 2), np.nan)).any()


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "f8"])
def test_a_large_offset_takes_no_grey_levels_away(tmp_path, kind):
    steps = np.arange(600, dtype=kind).reshape(20, 30)
    tifffile.imwrite(tmp_path / "x.tif", steps + np.array(2**30, kind))
    (frame,) = read_stack(tmp_path / "x.tif").frames
    np.testing.assert_allclose(scale_frame(frame), steps / 599, atol=1e-6)


def test_a_pipe_is_no_frame(tmp_path):
    os.mkfifo(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: is no regular file"):
        read_stack(tmp_path / "x.tif")
    assert count_pixels(tmp_path / "x.tif") == 0


def test_a_stack_that_claims_more_than_its_file_can_hold_is_damage(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((30, 40), np.uint8), metadata=None)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        for name in ("ImageWidth", "ImageLength"):
            offset = file.pages[0].tags[name].valueoffset
            data[offset - 6 : offset + 4] = struct.pack("<HII", 4, 1, 200_000)
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tif: cannot be read as TIFF \(claims \(200000, 200000\)"):
        read_stack(tmp_path / "x.tif")
    assert count_pixels(tmp_path / "x.tif") == 0


def test_too_many_frames_are_refused_by_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr("hela_nuclei.frames.LARGEST_STACK", 5000)
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((7, 30, 40), np.uint8), metadata={"axes": "TYX"})
    with pytest.raises(ValueError, match=r"\(7, 30, 40\) are too many pixels .*at most 5000"):
        read_stack(tmp_path / "x.tif")
