"""Inference on workers against inference in one process: real processes, some of them killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyogrio
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image

from common.files import RECORD, Workplace
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig, load_predictor
from common.networks.checkpoint import save_checkpoint
from footprints.task import TASK

ROOT = Path(__file__).resolve().parents[3]
HELP = Path(__file__).with_name("worker_preloads")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small network with random weights."""
    torch.manual_seed(0)
    widths = {"widths": [4, 8]}
    return save_checkpoint_of(tmp_path_factory.mktemp("network") / "net.pt", widths)


def save_checkpoint_of(path, arguments):
    model = TASK.build("unet_small", **arguments)
    save_checkpoint(path, TASK.card("unet_small", arguments), model.state_dict())
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """As many as each worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(path, height=700, width=300, seed=0):
    """A georeferenced raster with blocks of color and a part without data."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (3, height // 20 + 1, width // 20 + 1), dtype=np.uint8)
    pixels = pixels.repeat(20, 1).repeat(20, 2)[:, :height, :width].copy()
    pixels[:, height // 2 :, : width // 3] = 0
    profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8", "crs": "EPSG:25830"}
    with rasterio.open(path, "w", transform=Affine(0.5, 0, 430000, 0, -0.5, 4580000), nodata=0, **profile) as dataset:
        dataset.write(pixels)
    return path


def picture(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(10, 0).repeat(10, 1)).save(path)
    return path


def infer(checkpoint, folder, *paths, **flags):
    """What footprints/infer.py does in this process; its exit code."""
    config = InferConfig(input=paths, checkpoint=(checkpoint,), tile_size=64, vector="gpkg", output_dir=folder, **flags)
    predictor, tags = load_predictor(config, TASK)
    return infer_inputs(config, paths, predictor, folder, config.products(tags))


def start(checkpoint, folder, *paths, flags=()):
    """The same as a process of its own."""
    line = [sys.executable, ROOT / "footprints" / "infer.py", *paths, "--checkpoint", checkpoint, "--tile-size", 64,
            "--vector", "gpkg", "--output-dir", folder, *flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, line)), env=environment, stderr=subprocess.PIPE, text=True)


def features(path):
    _, _, geometry, fields = pyogrio.raw.read(path)
    return list(zip(geometry.tolist(), *(column.tolist() for column in fields), strict=True))


def results(folder):
    """What lies in a folder: bytes of files, features of polygons."""
    found = {path.name: path for path in folder.iterdir() if path.name != RECORD}
    return {name: features(path) if path.suffix == ".gpkg" else path.read_bytes() for name, path in found.items()}


def until(condition, seconds=120.0):
    """Wait for something that other processes do; what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
    return found


def parts_at_work(folder, rows=1):
    """Workers that have finished some rows of a part: (process id, folder of the part)."""
    found = []
    for state in folder.glob(".*/rows-*.partial/finished.json"):
        try:
            if json.loads(state.read_text())["rows"] >= rows:
                found.append((json.loads((state.parent / Workplace.OWNER).read_text())["pid"], state.parent))
        except (OSError, ValueError, KeyError):  # it is just being renamed
            continue
    return found


# Real processes


def test_workers_give_the_files_of_one_process_and_name_what_is_bad(checkpoint, tmp_path, capfd):
    paths = [scene(tmp_path / "town.tif"), *(picture(tmp_path / f"p{seed}.png", seed) for seed in range(40))]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths.insert(3, tmp_path / "bad.png")
    assert infer(checkpoint, tmp_path / "one", *paths) == 1
    alone = capfd.readouterr().err
    assert infer(checkpoint, tmp_path / "two", *paths, workers=2) == 1
    said = capfd.readouterr().err
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert [line for line in said.splitlines() if line.startswith("failed:")] == [
        line for line in alone.splitlines() if line.startswith("failed:")
    ]
    assert "41 of 42 files to" in said and "Mpx/s" in said and "Traceback" not in said
    names = [json.loads(line)["file"] for line in (tmp_path / "two" / RECORD).read_text().splitlines() if line]
    assert sorted(names) == sorted(results(tmp_path / "two"))


def test_killed_workers_and_a_killed_command_end_in_the_same_files(checkpoint, tmp_path, capfd):
    source = scene(tmp_path / "town.tif", 3000, 400)
    assert infer(checkpoint, tmp_path / "one", source) == 0
    out = tmp_path / "two"
    command = start(checkpoint, out, source, flags=("--workers", 2))
    for rows in (100, 300):  # two workers die in the midst of their parts
        pid, part = until(lambda rows=rows: parts_at_work(out, rows))[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda part=part, pid=pid: any(p == part and other != pid for other, p in parts_at_work(out)))
    workers = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    command.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlive their command"
    assert not [path for path in out.iterdir() if not path.name.startswith(".")], "nothing half-written"
    capfd.readouterr()
    assert infer(checkpoint, out, source, workers=2) == 0
    assert "rows were finished before, going on from there" in capfd.readouterr().err
    assert results(out) == results(tmp_path / "one")
