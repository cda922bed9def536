"""Tiles: the picture's own pixels where they are looked at, means of them further away."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio

from potsdam_points.labeling.tiles import COARSE, DIRECT, TILE, TileSource
from tests.potsdam_points.labeling.pictures import wait_for, write_picture

ROOT = Path(__file__).parents[3]


@pytest.fixture
def data():
    rows, columns = np.indices((1300, 2100))
    return np.stack([rows // 6, columns // 9, (rows + columns) // 14]).astype(np.uint8)


@pytest.fixture
def source(tmp_path, data):
    return TileSource(write_picture(tmp_path / "a.tif", data), tmp_path / "cache")


def test_tiles_of_the_finest_level_are_the_pixels(source, data):
    for x, y in ((0, 0), (3, 2), (8, 5)):
        rows, columns = slice(y * TILE, (y + 1) * TILE), slice(x * TILE, (x + 1) * TILE)
        assert (source.tile(0, x, y) == np.moveaxis(data[:, rows, columns], 0, -1)).all()


def test_coarse_tiles_are_means(source, data):
    block = data[:, :1024, 1024:2048].reshape(3, 256, 4, 256, 4).mean(axis=(2, 4))
    assert np.abs(np.moveaxis(source.tile(2, 1, 0), -1, 0) - block).max() <= 1.5


def test_coarser_ones_wait_for_the_small_copy(source, data):
    assert source.top == 4 and source.needs_copy and source.tile(DIRECT + 1, 0, 0) is None
    source.make_copy(threading.Event())
    assert not source.needs_copy
    tile = source.tile(3, 0, 0)
    assert tile.shape == (1300 // COARSE, 256, 3)
    block = data[:, :1296, :2048].reshape(3, 162, 8, 256, 8).mean(axis=(2, 4))
    assert np.abs(np.moveaxis(tile, -1, 0)[:, :160] - block[:, :160]).max() <= 2
    assert source.tile(4, 0, 0).shape == (81, 131, 3)
    assert list(source.path.parent.glob("*.ovr")) == []  # nothing beside the user's file


def test_overviews_in_the_file_are_used(tmp_path, data):
    path = write_picture(tmp_path / "b.tif", data, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    source = TileSource(path, tmp_path / "cache")
    assert not source.needs_copy and source.tile(3, 0, 0).shape == (162, 256, 3)


@pytest.mark.parametrize(("z", "x", "y"), [(0, 9, 0), (0, 0, 6), (-1, 0, 0), (5, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_there_is_nothing_beyond_the_edge(source, z, x, y):
    assert source.tile(z, x, y) is None


def test_one_band_of_16_bits_in_its_range(tmp_path):
    data = np.array([[[100, 600], [1100, 2000]]], np.uint16)
    tile = TileSource(write_picture(tmp_path / "c.tif", data), tmp_path, (100, 1100)).tile(0, 0, 0)
    assert tile[..., 0].tolist() == [[0, 128], [255, 255]] and (tile == tile[..., :1]).all()


def test_threads_do_not_disturb_each_other(source, data):
    wrong = []

    def look(seed):
        generator = np.random.default_rng(seed)
        for _ in range(30):
            x, y = int(generator.integers(8)), int(generator.integers(5))
            part = data[:, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
            if not (source.tile(0, x, y) == np.moveaxis(part, 0, -1)).all():
                wrong.append((x, y))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_a_copy_that_is_stopped_leaves_nothing(source):
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        source.make_copy(stop)
    assert list(source.copy.parent.iterdir()) == []


def test_the_command_keeps_small_copies_where_it_is_told(tmp_path, data):
    picture, kept = write_picture(tmp_path / "a.tif", data), tmp_path / "kept"
    command = [sys.executable, ROOT / "potsdam_points" / "label.py", picture, "--no-browser", "--cache-dir", kept]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert "127.0.0.1" in running.stdout.readline()
        wait_for(lambda: not TileSource(picture, kept).needs_copy, "the small copy")
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "kept"]
