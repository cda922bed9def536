from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import tifffile
import torch
import torch.nn.functional as F
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.features import rasterize
from torch import nn

from common.images.display import overlay, stretch
from common.images.ranges import to_channels
from common.images.rasters import read_raster
from common.images.write import quantize
from common.inference.job import Job
from common.inference.predictor import Cut, Predictor
from common.inference.products import Products
from common.inference.spool import Appender, Layer, Spool, spool_key, workplace
from common.inference.stream import is_streamed, layers_of, open_spool, predict_bands, predict_raster
from common.inference.strips import Thumbnail
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from common.outputs import RECORD, OutputFolder

CRS, TRANSFORM = "EPSG:25830", Affine(0.25, 0, 430000, 0, -0.25, 4580000)
COLORS = {0: (10, 10, 10), 1: (250, 0, 0), 2: (0, 250, 0)}


class Toy(nn.Module):
    """Logits from 5 x 5 pixels; ``place`` adds where in its tile a pixel lies, so that tiles differ."""

    def __init__(self, outputs: int, channels: int = 3, place: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kernel = nn.Parameter(torch.randn(outputs, channels, 5, 5, generator=generator))
        self.place = place

    def forward(self, x):
        logits = F.conv2d(x - 0.5, self.kernel, padding=2)
        return logits + self.place * torch.linspace(-1, 1, x.shape[-1]) * torch.linspace(-1, 1, x.shape[-2])[:, None]


def predictor(classes=2, *, tile=32, overlap=0.25, place=0.0, channels=3, scale=1.0, **options):
    names = ["background", "roof"] if classes == 2 else ["water", "forest", "city"][:classes]
    outputs = 1 if classes == 2 else classes
    card = ModelCard("toys", "toy", {"channels": channels}, names, COLORS, scale=scale, threshold=0.5)
    precision = Precision(torch.device("cpu"), None)
    cut = Cut(tile, overlap, options.pop("tta", False))
    return Predictor([(Toy(outputs, channels, place), card)], precision, cut=cut, **options)


def smooth(shape, seed=0):
    """Noise with structures of some pixels, 0...1."""
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, *shape), dtype=np.float32))
    return F.avg_pool2d(noise, 5, 1, 2)[0].numpy() * 2 - 0.5


def save(path, bands, *, alpha=False, mask=None, crs=CRS, transform=TRANSFORM, **options):
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    profile |= {"dtype": bands.dtype.name, "crs": crs, "transform": transform} | options
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(bands)
        if alpha:
            dataset.colorinterp = [*dataset.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
        if mask is not None:
            dataset.write_mask(mask)
    return path


def picture(height=90, width=110, bands=3, seed=0):
    return np.clip(smooth((bands, height, width), seed) * 255, 1, 255).astype(np.uint8)


def raw(source, model, folder, **options):
    """A finished spool of a raster."""
    with rasterio.open(source) as dataset:
        size = dataset.shape
    spool = Spool(folder, size, layers_of(model, probability=True, confidence=True))
    predict_raster(source, model, spool, **options)
    return spool


def stream_file(source, model, folder, stem, options, *, input_range=None, progress=lambda _: None):
    """Predict a raster and write its products."""
    assert is_streamed(source) or not source.exists()
    Job(model, OutputFolder(folder), options, input_range).run(source, stem, progress)


# Pixels


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    tile=st.integers(12, 48),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]),
    block=st.sampled_from([0, 16, 32]),
    classes=st.sampled_from([2, 3]),
    tta=st.booleans(),
    kind=st.sampled_from(["uint8", "uint16", "float32"]),
    holes=st.sampled_from(["none", "some", "many"]),
    seed=st.integers(0, 1000),
)
def test_streamed_equals_predicted_in_memory(
    tmp_path_factory, height, width, tile, overlap, block, classes, tta, kind, holes, seed
):
    folder = tmp_path_factory.mktemp("any")
    bands = np.clip(smooth((3, height, width), seed), 0.01, 1)
    bands = bands.astype(kind) if kind == "float32" else (bands * np.iinfo(kind).max).astype(kind)
    if holes != "none":
        bands[:, : height // 3] = 0
        bands[:, :, width // (2 if holes == "many" else 4) :] = 0
    layout = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {"blockysize": 3}
    source = save(folder / "a.tif", bands, nodata=0, **layout)
    model = predictor(classes, tile=tile, overlap=overlap, place=2.0, tta=tta)
    spool = raw(source, model, folder / "spool")
    raster = read_raster(source)

    expected = model(to_channels(raster.data, raster.valid))
    mask = np.where(raster.valid, model.classify(expected), 255)
    probability = spool.read("probability", 0, height)
    np.testing.assert_array_equal(np.isnan(probability).any(0), ~raster.valid)
    np.testing.assert_allclose(probability[:, raster.valid], expected[:, raster.valid], atol=1e-5)
    sure = ~raster.valid | (np.abs(expected - 0.5).min(0) > 1e-4 if classes == 2 else True)
    assert (spool.read("mask", 0, height)[0] == mask)[sure].mean() > 0.999


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 120),
    width=st.integers(20, 90),
    tile=st.integers(12, 48),
    overlap=st.sampled_from([0.0, 0.25, 0.75]),
    block=st.sampled_from([0, 16, 32]),
    classes=st.sampled_from([2, 3]),
    batch=st.integers(1, 3),
    hole=st.integers(0, 60),
    data=st.data(),
)
def test_bands_are_the_same_bytes_wherever_a_range_of_rows_begins_and_ends(
    tmp_path_factory, height, width, tile, overlap, block, classes, batch, hole, data
):
    folder = tmp_path_factory.mktemp("cuts")
    bands = picture(height, width)
    bands[:, height // 4 : height // 4 + hole, : width - 10] = 0
    layout = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {"blockysize": 3}
    source = save(folder / "a.tif", bands, nodata=0, **layout)
    model = predictor(classes, tile=tile, overlap=overlap, place=2.0)
    model.batch = batch
    layers = layers_of(model, probability=True, confidence=True)

    def joined(*cuts):
        parts = [part for rows in pairwise(cuts) for part in predict_bands(source, model, layers, rows)]
        assert [row for row, _ in parts] == model.band_edges((height, width))[:-1]
        return {name: np.concatenate([band[name] for _, band in parts], axis=1).tobytes() for name in layers}

    cuts = sorted(data.draw(st.sets(st.sampled_from(model.band_edges((height, width))[1:-1] or [height]))))
    assert joined(0, *[cut for cut in cuts if cut < height], height) == joined(0, height)


def test_a_range_of_rows_ends_with_a_band(tmp_path):
    source = save(tmp_path / "a.tif", picture())
    layers = {"mask": Layer(1, "uint8")}
    with pytest.raises(ValueError, match="row 7 is not the end of a band"):
        next(predict_bands(source, predictor(), layers, (0, 7)))


@pytest.mark.parametrize("told", ["by the flag", "by the network"])
def test_values_are_read_in_the_range_they_have(tmp_path, told, capsys):
    dark = (picture().astype(np.uint16) * 8) + 40
    source, model = save(tmp_path / "a.tif", dark), predictor()
    if told == "by the network":
        model.card.normalization["range"] = [40, 2080]
    flag = (40.0, 2080.0) if told == "by the flag" else None
    stream_file(source, model, tmp_path / "out", "a", products(), input_range=flag)
    assert "warning" not in capsys.readouterr().err
    with rasterio.open(tmp_path / "out" / "a_prob.tif") as prob:
        np.testing.assert_allclose(prob.read(), model((dark - 40).astype(np.float32) / 2040), atol=1e-5)
    with rasterio.open(tmp_path / "out" / "a_mask.tif") as mask:
        picture8 = stretch(np.round((dark - 40) / 2040 * 255).astype(np.uint8))
        shown = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))
        assert np.abs(shown - overlay(picture8, mask.read(1), COLORS).astype(int)).max() <= 2
    model.card.normalization.clear()
    stream_file(source, model, tmp_path / "type", "a", products())
    assert "warning" in capsys.readouterr().err
    with rasterio.open(tmp_path / "type" / "a_prob.tif") as prob:
        np.testing.assert_allclose(prob.read(), model(dark.astype(np.float32) / 65535), atol=1e-5)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_any_number_of_bands_is_read_as_in_memory(tmp_path, bands):
    source = save(tmp_path / "a.tif", picture(bands=bands))
    for model in [predictor(), *[predictor(channels=5)] * (bands == 5)]:
        spool = raw(source, model, tmp_path / f"spool{model.channels}")
        raster = read_raster(source)
        expected = model(
            to_channels(raster.data, raster.valid) if model.channels == 3 else raster.data / np.float32(255)
        )
        np.testing.assert_allclose(spool.read("probability", 0, 90), expected, atol=1e-5)


def test_too_few_bands_are_refused(tmp_path):
    source = save(tmp_path / "a.tif", picture(bands=3))
    with pytest.raises(ValueError, match="has 3 bands, the network reads 5"):
        raw(source, predictor(channels=5), tmp_path / "spool")


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan"])
def test_nodata_of_any_kind_is_painted_and_never_predicted(tmp_path, kind, monkeypatch):
    bands = picture(100, 130)
    hole = np.zeros((100, 130), bool)
    hole[30:, :70] = True
    if kind == "nodata":
        source = save(tmp_path / "a.tif", np.where(hole, 0, bands).astype(np.uint8), nodata=0)
    elif kind == "mask":
        source = save(tmp_path / "a.tif", bands, mask=~hole)
    elif kind == "alpha":
        source = save(
            tmp_path / "a.tif", np.concatenate([bands, np.where(hole, 0, 255)[None].astype(np.uint8)]), alpha=True
        )
    else:
        source = save(tmp_path / "a.tif", np.where(hole, np.nan, bands / 255).astype(np.float32))
    model, seen = predictor(tile=32, overlap=0.0), []
    inner = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda images: seen.append(len(images)) or inner(images))
    spool = raw(source, model, tmp_path / "spool")
    np.testing.assert_array_equal(spool.read("mask", 0, 100)[0] == 255, hole)
    np.testing.assert_array_equal(np.isnan(spool.read("probability", 0, 100)[0]), hole)
    # 4 x 5 tiles; of the lower three rows the left two columns of tiles hold nothing but nodata.
    assert sum(seen) == 20 - 2 * 2


def test_every_row_of_the_file_is_read_once_and_in_whole_blocks(tmp_path, monkeypatch):
    source = save(tmp_path / "a.tif", picture(200, 60), tiled=True, blockxsize=16, blockysize=16)
    asked = []
    from common.inference import strips as streaming

    real = streaming.read_bands
    monkeypatch.setattr(
        streaming, "read_bands", lambda dataset, rows, **options: asked.append(rows) or real(dataset, rows, **options)
    )
    raw(source, predictor(tile=40, overlap=0.5), tmp_path / "spool")
    assert [first for first, _ in asked] == [0, *[last for _, last in asked[:-1]]] and asked[-1][1] == 200
    assert all(last % 16 == 0 for _, last in asked[:-1])
    assert max(last - first for first, last in asked) <= 48


def test_a_resumed_run_reads_on_near_its_last_row(tmp_path, monkeypatch):
    source = save(tmp_path / "a.tif", picture(200, 60), tiled=True, blockxsize=16, blockysize=16)
    model = predictor(tile=40, overlap=0.5)
    whole = raw(source, model, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        raw(source, model, tmp_path / "spool", progress=interrupt_after(60 * 100))
    from common.inference import strips as streaming

    asked, real = [], streaming.read_bands
    monkeypatch.setattr(
        streaming, "read_bands", lambda dataset, rows, **options: asked.append(rows) or real(dataset, rows, **options)
    )
    again = raw(source, model, tmp_path / "spool")
    assert asked[0][0] == 80  # of the tiles over rows from 100 on, the first row
    for name in ("mask", "probability", "confidence"):
        np.testing.assert_array_equal(again.read(name, 0, 200), whole.read(name, 0, 200))


def interrupt_after(pixels):
    """A progress callback that stops the run as Ctrl-C would, once so many pixels are finished."""
    done = []

    def progress(count):
        done.append(count)
        if sum(done) >= pixels:
            raise KeyboardInterrupt

    return progress


# Files


def products(**options):
    return Products(**{"tags": {"checkpoint_sha256": "abc", "version": "1"}} | options)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD) if folder.exists() else []


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_results_take_over_the_frame_and_say_where_they_come_from(tmp_path):
    source = save(tmp_path / "a.tif", picture(300, 600), nodata=0)
    stream_file(source, predictor(3), tmp_path / "out", "a", products())
    assert names(tmp_path / "out") == ["a_mask.tif", "a_overlay.png", "a_prob.tif"]
    with rasterio.open(tmp_path / "out" / "a_mask.tif") as mask:
        assert (mask.crs.to_string(), mask.transform, mask.shape) == (CRS, TRANSFORM, (300, 600))
        assert (mask.dtypes[0], mask.nodata, mask.compression.name) == ("uint8", 255, "deflate")
        assert mask.colormap(1)[1] == (250, 0, 0, 255) and mask.colormap(1)[255] == (0, 0, 0, 0)
        assert mask.block_shapes == [(256, 256)] and mask.overviews(1) == [2, 4]
        assert mask.tags()["checkpoint_sha256"] == "abc"
    with rasterio.open(tmp_path / "out" / "a_prob.tif") as prob:
        assert prob.dtypes == ("float32",) * 3 and np.isnan(prob.nodata) and prob.overviews(3) == [2, 4]
        np.testing.assert_allclose(prob.read().sum(0), 1, atol=1e-5)
    assert size_of(tmp_path / "out" / "a_overlay.png") == (600, 300)


def test_overviews_hold_classes_and_mean_probabilities(tmp_path):
    source, model = save(tmp_path / "a.tif", picture(300, 600)), predictor(3, tile=256)
    stream_file(source, model, tmp_path / "out", "a", products())
    with rasterio.open(tmp_path / "out" / "a_mask.tif") as file:
        whole = file.read(1)
    with rasterio.open(tmp_path / "out" / "a_mask.tif", overview_level=0) as file:
        small = file.read(1)
    blocks = whole.reshape(150, 2, 300, 2).swapaxes(1, 2).reshape(150, 300, 4)
    votes = np.stack([(blocks == value).sum(axis=-1) for value in range(3)])
    assert (np.take_along_axis(votes, small[None].astype(int), 0)[0] == votes.max(axis=0)).mean() > 0.99
    with rasterio.open(tmp_path / "out" / "a_prob.tif") as file:
        whole = file.read()
    with rasterio.open(tmp_path / "out" / "a_prob.tif", overview_level=0) as file:
        np.testing.assert_allclose(file.read(), whole.reshape(3, 150, 2, 300, 2).mean(axis=(2, 4)), atol=1e-5)


def test_polygons_know_their_probability_and_where_they_come_from(tmp_path):
    bands = picture(64, 72)
    bands[:, :20] = 0
    source, options = save(tmp_path / "a.tif", bands, nodata=0), products(vector="gpkg", min_area=1.0)
    stream_file(source, predictor(3), tmp_path / "out", "a", options)
    assert set(options.names("a", placed=True)) == set(names(tmp_path / "out"))
    assert pyogrio.read_info(tmp_path / "out" / "a.gpkg")["layer_metadata"]["checkpoint_sha256"] == "abc"
    _, _, geometry, (kind, _, area, mean) = pyogrio.raw.read(tmp_path / "out" / "a.gpkg")
    with rasterio.open(tmp_path / "out" / "a_prob.tif") as file:
        prob = file.read()
    assert area.min() >= 1 and len(area) > 5 and set(kind) == {0, 1, 2}
    for shape, value, expected in zip(shapely.from_wkb(geometry), kind, mean, strict=True):
        inside = rasterize([shape], (64, 72), transform=TRANSFORM).astype(bool)
        assert prob[value][inside].mean() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_cog_files_are_laid_out_as_the_format_wants(tmp_path, classes):
    source = save(tmp_path / "a.tif", picture(700, 1100), nodata=0)
    stream_file(source, predictor(classes, tile=256), tmp_path / "cog", "a", products(cog=True))
    stream_file(source, predictor(classes, tile=256), tmp_path / "plain", "a", products())
    assert names(tmp_path / "cog") == names(tmp_path / "plain") == ["a_mask.tif", "a_overlay.png", "a_prob.tif"]
    for name in ("a_mask.tif", "a_prob.tif"):
        assert_is_cog(tmp_path / "cog" / name)
        with rasterio.open(tmp_path / "cog" / name) as cog, rasterio.open(tmp_path / "plain" / name) as plain:
            np.testing.assert_array_equal(cog.read(), plain.read())
            assert (cog.crs, cog.transform, cog.tags()["version"]) == (plain.crs, plain.transform, "1")
            if name == "a_mask.tif":
                assert cog.colormap(1)[1] == (250, 0, 0, 255) and cog.nodata == 255
    with pytest.raises(AssertionError):
        assert_is_cog(tmp_path / "plain" / "a_mask.tif")


def assert_is_cog(path):
    """What GDAL's validator checks: tiles, overviews by halves, headers before pixels, smaller overviews first."""
    with tifffile.TiffFile(path) as file:
        levels = [page for page in file.pages if not page.is_mask]
        assert all(page.is_tiled for page in levels)
        assert len(levels) > 1 and all(a.imagewidth > b.imagewidth for a, b in pairwise(levels))
        assert max(levels[-1].shape[:2]) <= 512
        headers = [page.offset for page in levels]
        pixels = [min(offset for offset in page.dataoffsets if offset) for page in levels]
        assert headers == sorted(headers) and headers[-1] < min(pixels)
        assert pixels == sorted(pixels, reverse=True)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_files_can_grow_beyond_four_gigabytes(tmp_path, monkeypatch):
    source, seen, real = save(tmp_path / "a.tif", picture()), [], rasterio.open
    monkeypatch.setattr("rasterio.open", lambda *args, **options: seen.append(options) or real(*args, **options))
    stream_file(source, predictor(), tmp_path / "out", "a", products())
    assert [o["bigtiff"] for o in seen if "bigtiff" in o] == ["IF_SAFER"] * 2


def test_probabilities_and_overlay_can_be_left_out(tmp_path):
    source = save(tmp_path / "a.tif", picture())
    stream_file(source, predictor(), tmp_path / "out", "a", products(prob=False, overlay=False))
    assert names(tmp_path / "out") == ["a_mask.tif"]


def test_a_large_picture_gives_a_palette_png(tmp_path, monkeypatch):
    Image.fromarray(np.moveaxis(picture(), 0, -1)).save(tmp_path / "a.png")
    assert not is_streamed(tmp_path / "a.png")
    monkeypatch.setattr("common.inference.stream.LARGE", 9000)
    assert is_streamed(tmp_path / "a.png")
    model = predictor(3)
    stream_file(tmp_path / "a.png", model, tmp_path / "out", "a", products())
    mask = Image.open(tmp_path / "out" / "a_mask.png")
    assert mask.mode == "P" and mask.getpalette()[3:6] == [250, 0, 0]
    raster = read_raster(tmp_path / "a.png")
    expected = model.classify(model(to_channels(raster.data, raster.valid)))
    assert (np.asarray(mask) == expected).mean() > 0.999


def test_what_cannot_be_read_in_parts_is_not_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("common.inference.stream.LARGE", 10)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(np.moveaxis(picture(), 0, -1)).save(tmp_path / "turned.jpg", exif=turned)
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack", metadata=None)
    (tmp_path / "text.tif").write_text("no picture")
    save(tmp_path / "radar.tif", picture(8, 8, 1).astype(np.complex64))
    strange = ("turned.jpg", "stack.tif", "text.tif", "none.tif", "radar.tif")
    assert not any(is_streamed(tmp_path / name) for name in strange)
    save(tmp_path / "chip.tif", picture(8, 8))
    assert is_streamed(tmp_path / "chip.tif")


def test_an_overlay_of_a_large_raster_is_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr("common.inference.products.FULL_OVERLAY", 5000)
    monkeypatch.setattr("common.inference.products.LARGEST_OVERLAY", 50)
    monkeypatch.setattr("common.inference.products.OVERLAY_ROWS", 16)
    bands = picture()
    bands[:, :30] = 0
    source = save(tmp_path / "a.tif", bands, nodata=0)
    heights = []

    real = Thumbnail.add

    def add(self, first, data, valid):
        heights.append(len(valid))
        return real(self, first, data, valid)

    monkeypatch.setattr(Thumbnail, "add", add)
    stream_file(source, predictor(), tmp_path / "out", "a", products())
    assert size_of(tmp_path / "out" / "a_overlay.png") == (-(-110 // 3), 90 // 3)
    assert sum(heights) == 90 and len(heights) > 1, "the file is read once, in parts"


@pytest.mark.parametrize("step", [1, 3])
def test_an_overlay_is_painted_in_bands_as_a_whole(tmp_path, monkeypatch, step):
    monkeypatch.setattr("common.inference.products.OVERLAY_ROWS", 16)
    monkeypatch.setattr("common.inference.products.overlay_step", lambda size: step)
    monkeypatch.setattr("common.inference.stream.overlay_step", lambda size: step)
    monkeypatch.setattr("common.inference.products.boundary_width", lambda size: 2)
    source, model = save(tmp_path / "a.tif", picture(), nodata=0), predictor()
    for folder in ("out", "again"):
        if folder == "again":
            with pytest.raises(KeyboardInterrupt):
                stream_file(source, model, tmp_path / folder, "a", products(), progress=interrupt_after(110 * 50))
        stream_file(source, model, tmp_path / folder, "a", products())
        with rasterio.open(tmp_path / folder / "a_mask.tif") as file:
            mask = file.read(1)[::step, ::step]
        expected = overlay(stretch(picture()[:, ::step, ::step]), mask, COLORS, 2)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / folder / "a_overlay.png")), expected)


# Interruptions


def results(folder):
    """Bytes of the rasters, and the polygons of the vector files, in a folder without leftovers."""
    content = {}
    for path in folder.iterdir():
        assert not path.name.startswith("."), path
        if path.name == RECORD:
            continue
        if path.suffix == ".gpkg":
            _, _, geometry, fields = pyogrio.raw.read(path)
            content[path.name] = [list(geometry), *[list(values) for values in fields]]
        else:
            content[path.name] = path.read_bytes()
    return content


@pytest.mark.parametrize("cog", [False, True])
def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path, cog, capsys):
    source, model = save(tmp_path / "a.tif", picture(200, 150), nodata=0), predictor(3, tile=40, place=1.0)
    options = products(vector="gpkg", cog=cog)
    stream_file(source, model, tmp_path / "whole", "a", options)
    for pixels in (1, 150 * 100):
        with pytest.raises(KeyboardInterrupt):
            stream_file(source, model, tmp_path / "out", "a", options, progress=interrupt_after(pixels))
        assert all(name.startswith(".a-") for name in names(tmp_path / "out"))
        assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
    stream_file(source, model, tmp_path / "out", "a", options)
    assert "rows were finished before" in capsys.readouterr().err
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert len(results(tmp_path / "out")) == 4


def test_a_run_interrupted_while_files_are_made_ends_in_the_same_bytes(tmp_path, monkeypatch):
    source, model = save(tmp_path / "a.tif", picture(200, 150)), predictor(3, tile=40)
    options = products(vector="gpkg")
    stream_file(source, model, tmp_path / "whole", "a", options)

    def interrupt(path, rows, *_, **__):
        rows.read("mask", 199, 200)
        raise KeyboardInterrupt

    for place in ("write_probability", "_write_overlay", "write_vectors"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"common.inference.products.{place}", interrupt)
            stream_file(source, model, tmp_path / "out", "a", options)
    monkeypatch.setattr(model, "probabilities", None)  # nothing is left to predict
    stream_file(source, model, tmp_path / "out", "a", options)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("place", ["pyogrio.raw.write", "PIL.PngImagePlugin.putchunk"])
def test_what_a_kill_leaves_of_a_product_goes_with_the_spool(tmp_path, monkeypatch, place):
    """A killed process removes nothing: neither temporary folders nor files that are half done."""
    source, model = save(tmp_path / "a.tif", picture(60, 50)), predictor(3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tempfile.TemporaryDirectory.cleanup", lambda self: self._finalizer.detach())
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        patch.setattr(place, lambda *_, **__: interrupt_after(0)(0))
        stream_file(source, model, tmp_path / "out", "a", products(vector="gpkg"))
    left = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert len(left) == 1 and left[0].endswith(".partial")
    stream_file(source, model, tmp_path / "out", "a", products(vector="gpkg"))
    assert len(results(tmp_path / "out")) == 4


def test_another_input_or_option_does_not_go_on_with_foreign_rows(tmp_path):
    source = save(tmp_path / "a.tif", picture())
    one = spool_key(source, {"tile": 32})
    assert one == spool_key(source, {"tile": 32}) != spool_key(source, {"tile": 64})
    os.utime(source, (1, 1))
    changed = spool_key(source, {"tile": 32})
    source.write_bytes(source.read_bytes() + b" ")
    os.utime(source, (1, 1))
    assert len({one, changed, spool_key(source, {"tile": 32})}) == 3
    other = tmp_path / "b.tif"
    assert len({workplace(tmp_path, *place).path for place in (("a", source), ("b", source), ("a", other))}) == 3


def test_whatever_changes_the_rows_makes_another_spool(tmp_path):
    source = save(tmp_path / "a.tif", picture())

    def spool(model=None, value_range=None, **options):
        return open_spool(
            source, model or predictor(), tmp_path / "spool", products(**options), (90, 110), value_range
        ).key  # fmt: skip

    others = [spool(predictor(threshold=0.4)), spool(value_range=(0, 9)), spool(prob=False), spool(vector="gpkg"),
              spool(tags={"checkpoint_sha256": "other"})]  # fmt: skip
    assert len({spool(), *others}) == 6
    assert spool() == spool(min_area=3.0, overlay=False, cog=True, tags={"checkpoint_sha256": "abc", "date": "x"})


def test_a_continued_run_counts_the_pixels_that_were_finished_before(tmp_path):
    source, model, counted = save(tmp_path / "a.tif", picture(200, 150)), predictor(tile=40), []
    with pytest.raises(KeyboardInterrupt):
        stream_file(source, model, tmp_path / "out", "a", products(), progress=interrupt_after(150 * 100))
    stream_file(source, model, tmp_path / "out", "a", products(), progress=counted.append)
    assert sum(counted) == 200 * 150 and counted[0] >= 150 * 100


def test_options_that_change_probabilities_are_part_of_the_spools_name(tmp_path):
    base = predictor().settings((64, 64))
    for other in (
        predictor(tile=64), predictor(overlap=0.5), predictor(tta=True), predictor(scale=0.5),
        predictor(threshold=0.4),
    ):  # fmt: skip
        assert other.settings((64, 64)) != base
    assert json.dumps(base, default=str) == json.dumps(predictor().settings((64, 64)), default=str)


LAYERS = {"mask": Layer(1, "uint8")}


def half_done(folder, key="k"):
    """A spool of 6 rows of which 3 are finished, and its state file."""
    spool = Spool(folder, (6, 4), LAYERS, key)
    spool.append({"mask": np.ones((1, 3, 4), np.uint8)})
    spool.keep()
    return folder / "finished.json"


def test_rows_that_never_reached_the_disk_are_predicted_again(tmp_path, capsys):
    half_done(tmp_path / "s")
    with (tmp_path / "s" / "mask.raw").open("ab") as file:
        file.write(b"half a band")
    assert Spool(tmp_path / "s", (6, 4), LAYERS, "k").rows == 3
    assert (tmp_path / "s" / "mask.raw").stat().st_size == 12
    assert not capsys.readouterr().err
    (tmp_path / "s" / "mask.raw").write_bytes(b"short")
    assert Spool(tmp_path / "s", (6, 4), LAYERS, "k").rows == 0
    assert "rows are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state",
    ["", "{", "[]", "3", "null", '{"rows": -3, "key": "k"}', '{"rows": 7, "key": "k"}', '{"rows": 2, "key": "k"}',
     '{"rows": "3", "key": "k"}', '{"rows": true, "key": "k"}', '{"key": "k"}', '{"rows": 3, "key": "other"}', "\udcff",
     "[" * 100_000, "folder", "pipe", "raw folder"],
)  # fmt: skip
def test_a_damaged_state_begins_the_input_again_and_says_so(tmp_path, state, capsys):
    file = half_done(tmp_path / "s")
    if "folder" in state:
        file = tmp_path / "s" / "mask.raw" if state == "raw folder" else file
        file.unlink()
        file.mkdir()
        (file / "x").touch()
    elif state == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_text(state, errors="surrogateescape")
    spool = Spool(tmp_path / "s", (6, 4), LAYERS, "k", edges=[0, 3, 6])
    assert spool.rows == 0 and "starting anew" in capsys.readouterr().err
    spool.append({"mask": np.full((1, 6, 4), 7, np.uint8)})
    spool.keep()
    assert (Spool(tmp_path / "s", (6, 4), LAYERS, "k", edges=[0, 3, 6]).read("mask", 0, 6) == 7).all()


SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import torch
import test_stream as t
model = t.predictor(3, tile=40, place=1.0)
inner = model.probabilities
model.probabilities = lambda images: time.sleep(0.1) or inner(images)
t.stream_file(Path(sys.argv[1]), model, Path(sys.argv[2]), "a", t.products(vector="gpkg"))
"""


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path):
    source, model = save(tmp_path / "a.tif", picture(400, 150), nodata=0), predictor(3, tile=40, place=1.0)
    here = Path(__file__).resolve()
    script = SCRIPT.format(tests=str(here.parent), root=str(here.parents[3]))
    process = subprocess.Popen([sys.executable, "-c", script, source, tmp_path / "out"], stderr=subprocess.PIPE)
    while not (found := list((tmp_path / "out").glob(".a-*/finished.json"))):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    state = json.loads(found[0].read_text())
    assert 0 < state["rows"] < 400
    assert [path.name.startswith(".a-") for path in (tmp_path / "out").iterdir()] == [True]
    stream_file(source, model, tmp_path / "out", "a", products(vector="gpkg"))
    stream_file(source, model, tmp_path / "whole", "a", products(vector="gpkg"))
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("seen", ["at once", "later"])
def test_a_damaged_raster_is_named_and_leaves_nothing_behind(tmp_path, seen, monkeypatch):
    if seen == "later":
        look = np.ones((3, 1, 1), np.uint8), np.zeros((1, 1), bool)
        monkeypatch.setattr("common.inference.stream.sample_bands", lambda dataset: look)
    source = save(tmp_path / "a.tif", picture(400, 300), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    assert is_streamed(source)
    with pytest.raises(ValueError, match=r"a\.tif: cannot be read as an image.*remove or replace it"):
        stream_file(source, predictor(), tmp_path / "out", "a", products())
    assert names(tmp_path / "out") == []


def test_nan_from_the_network_is_an_error(tmp_path, monkeypatch):
    source, model = save(tmp_path / "a.tif", picture()), predictor()
    monkeypatch.setattr(model, "probabilities", lambda images: images[:, :1] * np.nan)
    with pytest.raises(ValueError, match=r"a\.tif.*--amp off"):
        stream_file(source, model, tmp_path / "out", "a", products())
    assert names(tmp_path / "out") == []


def test_what_was_handed_over_is_on_the_disk_when_the_next_band_fails(tmp_path):
    spool = Spool(tmp_path / "s", (6, 4), LAYERS, "k")
    band = {"mask": np.full((1, 2, 4), 7, np.uint8)}
    with pytest.raises(KeyError), Appender(spool) as append:
        append(band)
        append(band)
        raise KeyError
    assert Spool(tmp_path / "s", (6, 4), LAYERS, "k").rows == 4


@pytest.mark.parametrize(("patience", "kept"), [(0.0, [2, 4]), (9e9, [])])
def test_rows_are_kept_for_the_next_run_now_and_then(tmp_path, monkeypatch, patience, kept):
    monkeypatch.setattr("common.inference.spool.PATIENCE", patience)
    spool, found = Spool(tmp_path / "s", (6, 4), LAYERS, "k"), []
    for rows in (2, 4):
        spool.append({"mask": np.zeros((1, 2, 4), np.uint8)})
        spool.wait(rows)
        if (tmp_path / "s" / "finished.json").exists():
            found.append(json.loads((tmp_path / "s" / "finished.json").read_text())["rows"])
    assert found == kept


def test_files_are_written_while_a_raster_is_predicted(tmp_path, monkeypatch):
    source, model, written = save(tmp_path / "a.tif", picture(1200, 50)), predictor(tile=40), threading.Event()
    real, inner, seen = rasterio.io.DatasetWriter.write, model.probabilities, []

    def write(self, *arguments, **options):
        real(self, *arguments, **options)
        written.set()

    def probabilities(images):
        if len(seen) == 60:  # of 80 tiles
            assert written.wait(60), "nothing is written before the last row is predicted"
        seen.append(len(images))
        return inner(images)

    monkeypatch.setattr("rasterio.io.DatasetWriter.write", write)
    monkeypatch.setattr(model, "probabilities", probabilities)
    stream_file(source, model, tmp_path / "out", "a", products(prob=False))
    assert len(seen) == 80


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_ends_the_prediction(tmp_path, monkeypatch, error):
    source, model, seen = save(tmp_path / "a.tif", picture(1200, 50)), predictor(tile=40), []
    failed, inner = threading.Event(), model.probabilities

    def fail(*_, **__):
        failed.set()
        raise error

    def probabilities(images):
        assert failed.wait(60)
        seen.append(len(images))
        return inner(images)

    monkeypatch.setattr("common.inference.products.write_mask", fail)
    monkeypatch.setattr(model, "probabilities", probabilities)
    with pytest.raises(type(error)):
        stream_file(source, model, tmp_path / "out", "a", products())
    assert len(seen) < 20
    assert all(name.startswith(".a-") for name in names(tmp_path / "out"))


def test_errors_of_the_disk_stop_the_prediction(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "s", (6, 4), LAYERS, "k")

    def full(_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(spool, "append", full)
    with pytest.raises(OSError, match="no space left"), Appender(spool) as append:
        append({"mask": np.zeros((1, 2, 4), np.uint8)})


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_of_whole_numbers_are_the_rounded_ones(tmp_path, kind, classes):
    bands = picture()
    bands[:, 10:30, 20:50] = 0
    source, model = save(tmp_path / "a.tif", bands, nodata=0), predictor(classes)
    stream_file(source, model, tmp_path / "float", "a", products())
    stream_file(source, model, tmp_path / kind, "a", products(prob_type=kind))
    with rasterio.open(tmp_path / "float/a_prob.tif") as exact, rasterio.open(tmp_path / kind / "a_prob.tif") as coded:
        np.testing.assert_array_equal(coded.read(), quantize(exact.read(), kind))
    assert (tmp_path / "float/a_mask.tif").read_bytes() == (tmp_path / kind / "a_mask.tif").read_bytes()
