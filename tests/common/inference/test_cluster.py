"""Inference on workers against inference in one process: real processes, some of them killed for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import psutil
import pyogrio
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.command.cli import exit_code
from common.command.config import parse_flags
from common.files import Workplace
from common.inference.cluster import connect, plans, units
from common.inference.cluster.connect import address_of
from common.inference.cluster.units import divide, pieces_of
from common.inference.cluster.worker import Part
from common.inference.files import infer_inputs
from common.inference.flags import InferConfig, load_predictor
from common.inference.job import Job
from common.inference.spool import workplace
from common.inference.stream import open_spool
from common.networks.checkpoint import save_checkpoint
from common.outputs import RECORD, OutputFolder
from footprints.task import TASK

ROOT = Path(__file__).resolve().parents[3]
PRELOADS = Path(__file__).with_name("worker_preloads")


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


def start(checkpoint, folder, *paths, flags=(), **environment):
    """The same as a process of its own."""
    line = [sys.executable, ROOT / "footprints" / "infer.py", *paths, "--checkpoint", checkpoint, "--tile-size", 64,
            "--vector", "gpkg", "--output-dir", folder, *flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
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


def holding(path, pattern):
    """The environment of workers that stop in folders of such names (held.py), until ``path`` is empty."""
    path.write_text(pattern)
    return {"DASK_DISTRIBUTED__WORKER__PRELOAD": repr([str(PRELOADS / "held.py")]), "HELD": str(path)}


def parts_at_work(folder, rows=1):
    """Workers that have finished some rows of a part: (process id, folder of the part)."""
    found = []
    try:
        states = list(folder.glob(".town-*/rows-*.partial/finished.json"))
    except OSError:  # what is looked into is just being renamed
        return []
    for state in states:
        try:
            if json.loads(state.read_text())["rows"] >= rows:
                found.append((json.loads((state.parent / Workplace.OWNER).read_text())["pid"], state.parent))
        except (OSError, ValueError, KeyError):  # so is this
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


def test_sheets_of_a_mosaic_are_predicted_by_workers(checkpoint, tmp_path):
    whole = scene(tmp_path / "mosaic.tif", 1400)
    (tmp_path / "sheets").mkdir()
    sheets = [tmp_path / "sheets" / f"{number}.tif" for number in range(2)]
    with rasterio.open(whole) as dataset:
        for number, sheet in enumerate(sheets):
            place = dataset.transform @ Affine.translation(0, 700 * number)
            profile = dataset.profile | {"height": 700, "transform": place}
            with rasterio.open(sheet, "w", **profile) as part:
                part.write(dataset.read(window=((700 * number, 700 * number + 700), (0, dataset.width))))
    assert infer(checkpoint, tmp_path / "one", *sheets, mosaic=True) == 0
    assert infer(checkpoint, tmp_path / "two", *sheets, mosaic=True, workers=2) == 0
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert infer(checkpoint, tmp_path / "whole", whole) == 0
    assert results(tmp_path / "two")["mosaic.gpkg"] == results(tmp_path / "whole")["mosaic.gpkg"]


def test_killed_workers_and_a_killed_command_end_in_the_same_files(checkpoint, tmp_path):
    pictures = [picture(tmp_path / f"p{seed}.png", seed) for seed in range(34)]
    paths = [*pictures, scene(tmp_path / "town.tif", 2000, 400)]
    assert infer(checkpoint, tmp_path / "one", *paths) == 0
    out, held = tmp_path / "two", tmp_path / "held"
    command = start(checkpoint, out, *paths, flags=("--workers", 2), **holding(held, "rows-*"))
    pid, part = until(lambda: parts_at_work(out))[0]
    os.kill(pid, signal.SIGKILL)
    held.write_text(part.name)
    until(lambda: any(p == part and other != pid for other, p in parts_at_work(out)))  # another goes on with its part
    workers = psutil.Process(command.pid).children(recursive=True)
    listening = [port.laddr for process in (psutil.Process(command.pid), *workers)
                 for port in process.net_connections() if port.status == psutil.CONN_LISTEN]  # fmt: skip
    assert {address.ip for address in listening} == {"127.0.0.1"} and 8787 not in {each.port for each in listening}
    command.kill()
    command.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlive their command"
    assert not list(out.glob("town*")), "nothing half-written"
    (out / "p0_mask.png").unlink()
    again = start(checkpoint, out, *paths, flags=("--workers", 2))
    said = again.communicate()[1]
    assert again.returncode == 0
    assert "rows were finished before, going on from there" in said
    assert re.search(r"^\d+ of 35 files were finished before", said, re.MULTILINE)
    assert results(out) == results(tmp_path / "one")


def test_a_file_that_kills_its_workers_is_named_and_the_others_done(checkpoint, tmp_path, capfd):
    paths = [picture(tmp_path / f"p{seed}.png", seed) for seed in range(20)]
    paths.insert(5, picture(tmp_path / "poison.png"))
    with dask.config.set({"distributed.worker.preload": [str(PRELOADS / "poison.py")]}):
        assert infer(checkpoint, tmp_path / "out", *paths, workers=2) == 1
    said = capfd.readouterr().err
    (failed,) = [line for line in said.splitlines() if line.startswith("failed:")]
    assert "poison.png: killed its worker 3 times" in failed and "Traceback" not in said
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 20 and "20 of 21 files" in said
    assert not [path for path in (tmp_path / "out").iterdir() if "poison" in path.name or path.name == plans.PLACE]


def test_a_full_disk_is_named_and_the_next_run_goes_on(checkpoint, tmp_path, capfd):
    source = scene(tmp_path / "town.tif", 1200)
    with dask.config.set({"distributed.worker.preload": [str(PRELOADS / "full_disk.py")]}):
        assert infer(checkpoint, tmp_path / "out", source, workers=2) == 1
    said = capfd.readouterr().err
    (failed,) = [line for line in said.splitlines() if line.startswith("failed:")]
    assert "No space left on device" in failed and "the finished rows stay" in said and "Traceback" not in said
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert infer(checkpoint, tmp_path / "out", source) == 0  # in one process, which knows nothing of parts
    assert infer(checkpoint, tmp_path / "one", source) == 0
    assert results(tmp_path / "out") == results(tmp_path / "one")


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler's file, its process, and a worker, as on a cluster, that stops in rasters named town."""
    file, environment = tmp_path / "scheduler.json", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= holding(tmp_path / "held", ".town-*")
    options = {"env": environment, "cwd": tmp_path, "stderr": subprocess.DEVNULL}
    common = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
    kinds = {"scheduler": ("--port", "0"), "worker": ("--nthreads", "1", "--no-nanny")}
    processes = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{kind}", *common, *more], **options)
        for kind, more in kinds.items()
    ]
    until(file.exists)
    yield file, processes[0]
    for process in processes:
        process.kill()
        process.wait()


def test_a_scheduler_is_joined_and_its_death_ends_the_run(checkpoint, tmp_path, scheduler, capfd):
    file, process = scheduler
    first, source = picture(tmp_path / "p.png"), scene(tmp_path / "town.tif", 6000, 400)
    assert infer(checkpoint, tmp_path / "first", first, scheduler=str(file)) == 0
    assert (tmp_path / "first" / "p_mask.png").is_file()

    def kill():
        until(lambda: list((tmp_path / "out").glob(".town-*/finished.json")))
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    began = time.monotonic()
    assert infer(checkpoint, tmp_path / "out", source, scheduler=str(file)) == 1
    killer.join()
    said = capfd.readouterr().err
    assert "scheduler" in said and "0 of 1 files are done: start the command again" in said and "Traceback" not in said
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert time.monotonic() - began < 60, "in bounded time"


# Mistakes


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("nowhere.json", "there is no such file"),
        ("broken.json", "no scheduler wrote this file"),
        ("http://127.0.0.1:80", "begins with tcp:// or tls://"),
    ],
)
def test_what_names_no_scheduler_is_refused(tmp_path, monkeypatch, scheduler, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(ValueError, match=f"--scheduler {scheduler}: .*{words}"):
        address_of(scheduler)


def test_an_address_where_nothing_answers_is_named_in_bounded_time(checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(connect, "JOINING", 0.5)
    path = picture(tmp_path / "p.png")
    assert exit_code(lambda: infer(checkpoint, tmp_path / "out", path, scheduler="tcp://127.0.0.1:1")) == 2
    said = capfd.readouterr().err
    assert "error: --scheduler tcp://127.0.0.1:1: no scheduler answers" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_without_dask_the_flags_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for flags in (("--workers", "2"), ("--scheduler", "tcp://a:1")):
        with pytest.raises(ValueError, match=f"{flags[0]} needs Dask.*pip install -r requirements-cluster.txt"):
            parse_flags(InferConfig, ["a.png", *flags])


@pytest.mark.parametrize("flags", [("--workers", "-1"), ("--workers", "2", "--scheduler", "tcp://a:1")])
def test_flags_that_make_no_sense_are_refused(flags):
    with pytest.raises(ValueError, match="--workers"):
        parse_flags(InferConfig, ["a.png", *flags])


def test_a_second_command_on_the_same_outputs_is_refused(checkpoint, tmp_path):
    path = picture(tmp_path / "p.png")
    (tmp_path / "out").mkdir()
    first = Workplace(tmp_path / "out" / plans.PLACE)
    assert first.claim()
    with pytest.raises(ValueError, match=f"process {os.getpid()} on .* works there"):
        infer(checkpoint, tmp_path / "out", path, workers=2)
    first.remove()


def test_one_process_never_imports_dask(checkpoint, tmp_path):
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from footprints.infer import main\n"
        "assert main() == 0 and not {'dask', 'distributed', 'common.inference.cluster'} & set(sys.modules)"
    )
    line = [sys.executable, "-c", code, "infer.py", picture(tmp_path / "p.png"), "--checkpoint", checkpoint]
    subprocess.run([*line, "--output-dir", tmp_path / "out"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


# Where rasters are cut


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_ranges_cover_a_gap_and_end_with_bands(bands, pieces, data):
    edges = sorted(data.draw(st.sets(st.integers(1, 500), min_size=bands, max_size=bands)) | {0})
    gap = tuple(sorted(data.draw(st.tuples(st.sampled_from(edges), st.sampled_from(edges)))))
    found = divide(edges, gap, pieces)
    rows = [row for first, last in found for row in range(first, last)]
    assert rows == list(range(*gap)) and {edge for each in found for edge in each} <= set(edges)
    assert len(divide(edges, (0, edges[-1]), pieces)) == min(pieces, bands)


@pytest.mark.parametrize(
    ("bands", "wanted", "workers", "pieces"),
    [(50, 4, 2, 4), (16, 4, 2, 2), (50, 8, 4, 4), (16, 8, 4, 4), (3, 4, 2, 1), (1, 4, 2, 1), (50, 1, 2, 1)],
)
def test_rasters_are_divided_into_few_ranges_and_as_many_for_each_worker(bands, wanted, workers, pieces):
    assert pieces_of(bands, wanted, workers) == pieces


class Fake:
    """A client whose workers say what they are told to."""

    def __init__(self, threads, **said):
        self.threads, self.said = threads, said

    def nthreads(self):
        return self.threads

    def submit(self, task, blob, workers, pure):
        (name,) = workers
        return SimpleNamespace(result=lambda timeout: self.said[name], done=lambda: True)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Fake({"a": 1, "b": 4}), "worker b has 4 threads .* --nthreads 1"),
        (Fake({"a": 1}, a={"error": "no such file net.pt"}), "worker a: no such file net.pt"),
        (Fake({"a": 1, "b": 1}, a={"precision": "cpu"}, b={"precision": "cuda"}), "differently .*--device"),
    ],
)
def test_workers_that_cannot_work_alike_are_named(client, words, monkeypatch):
    monkeypatch.setattr(plans, "wait", lambda futures, timeout: None)
    with pytest.raises(ValueError, match=words):
        plans.check_workers(client, b"")


# Parts on the disk


@pytest.fixture
def divided(checkpoint, tmp_path, monkeypatch):
    """A raster's job, its workplace and its parts, all finished."""
    monkeypatch.setattr(units, "Meter", lambda *args, **options: lambda count: None)
    source = scene(tmp_path / "town.tif", 400)
    config = InferConfig(input=(source,), checkpoint=(checkpoint,), tile_size=64, output_dir=tmp_path / "out")
    predictor, tags = load_predictor(config, TASK)
    (tmp_path / "out").mkdir()
    job = Job(predictor, OutputFolder(tmp_path / "out"), config.products(tags))
    place = workplace(tmp_path / "out", "town", source).path
    reading = job.reading(source)
    spool = open_spool(source, reading.predictor, place, job.products, reading.size, reading.range)
    spool.keep()
    edges = reading.predictor.band_edges(reading.size)
    parts = []
    for first, last in divide(edges, (0, 400), 4):
        folder = place / Part(first, last, "").name
        sha256 = units._predict_part(None, job, source, folder, (first, last), spool.key)
        parts.append(Part(first, last, sha256))
    return job, source, place, spool, edges, parts


@pytest.mark.parametrize("damaged", [None, 0, 2, 3])
def test_parts_are_joined_up_to_one_that_is_damaged_and_the_rest_is_predicted_again(divided, tmp_path, damaged):
    job, source, place, *_, parts = divided
    if damaged is not None:
        file = place / parts[damaged].name / "mask.raw"
        content = bytearray(file.read_bytes())
        content[5] ^= 1
        file.write_bytes(content)
    units.join(job, source, "town", parts)
    assert json.loads((place / "finished.json").read_text())["rows"] == (
        400 if damaged is None else parts[damaged].first
    )
    assert not list(place.glob("rows-*"))
    job.run(source, "town", lambda count: None)
    Job(job.predictor, OutputFolder(tmp_path / "one"), job.products).run(source, "town", lambda count: None)
    assert results(tmp_path / "out") == results(tmp_path / "one")


def test_of_parts_on_the_disk_those_are_kept_that_are_whole_and_of_the_same_rows(divided):
    _, _, place, spool, edges, parts = divided
    assert units.found_parts(place, spool, edges) == (parts, [])
    (place / parts[1].name / "probability.raw").write_bytes(b"cut")
    (place / parts[2].name).rename(place / f"{parts[2].name}.partial")
    (place / "rows-1-3").mkdir()
    kept, begun = units.found_parts(place, spool, edges)
    assert kept == [parts[0], parts[3]] and begun == [parts[2][:2]]
    assert not (place / parts[1].name).exists() and not (place / "rows-1-3").exists()
    spool.key = "another"
    assert units.found_parts(place, spool, edges)[0] == []
