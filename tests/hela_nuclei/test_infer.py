import csv
import json
import shutil
import signal
import time
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.files import file_hash
from common.outputs import RECORD
from tests.peers import Peer

validate_sequence = Peer("ctc_metrics.scripts.validate:validate_sequence")


@pytest.fixture
def infer(call, checkpoint):
    return lambda *args: call("infer", *args, "--checkpoint", checkpoint)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_folder_of_frames(command, own_scene, checkpoint, tmp_path):
    (own_scene / "01" / "t002.tif").unlink()  # a gap
    out = tmp_path / "out"
    result = command("infer", own_scene / "01", "--checkpoint", checkpoint, "--output-dir", out, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out == ""
    for words in ("Mpx/s", "4 of 4 files", str(checkpoint)):
        assert words in result.err
    stems = ["t000", "t001", "t003", "t004"]
    kinds = ("mask.png", "prob.tif", "overlay.png", "nuclei.csv", "counts.csv")
    assert {path.name for path in out.iterdir()} == {
        *(f"01_{s}_{k}" for s in stems for k in kinds), "01_RES", "provenance.jsonl",
    }  # fmt: skip
    threshold = None
    for stem in stems:
        mask = np.asarray(Image.open(out / f"01_{stem}_mask.png"))
        with tifffile.TiffFile(out / f"01_{stem}_prob.tif") as tiff:
            probability, text = tiff.asarray(), str(tiff.pages[0].tags["GDAL_METADATA"].value)
        assert file_hash(checkpoint) in text
        assert "date" in text
        assert (mask.dtype, mask.shape) == (np.uint8, (96, 128))
        assert (probability.dtype, probability.shape) == (np.float32, (96, 128))
        assert set(np.unique(mask)) == {0, 255}
        threshold = probability[mask == 255].min()
        assert probability[mask == 0].max() < threshold
        assert np.asarray(Image.open(out / f"01_{stem}_overlay.png")).shape == (96, 128, 3)
        labels = tifffile.imread(out / "01_RES" / f"mask{stem[1:]}.tif")
        assert (labels.dtype, labels.shape) == (np.uint16, (96, 128))
        assert not labels[mask == 0].any()
        rows, frame = table(out / f"01_{stem}_nuclei.csv"), tifffile.imread(own_scene / "01" / f"{stem}.tif")
        assert list(rows[0]) == ["frame", "label", "area", "y", "x", "mean_intensity"]
        assert [int(row["label"]) for row in rows] == [i for i in np.unique(labels).tolist() if i]
        for row in rows:
            inside = labels == int(row["label"])
            y, x = np.nonzero(inside)
            expected = (int(stem[1:]), inside.sum(), y.mean(), x.mean(), frame[inside].mean())
            assert [float(row[k]) for k in ("frame", "area", "y", "x", "mean_intensity")] == pytest.approx(
                expected, abs=0.01
            )
        assert table(out / f"01_{stem}_counts.csv") == [{"frame": str(int(stem[1:])), "nuclei": str(len(rows))}]
    assert {path.name for path in (out / "01_RES").iterdir()} == {f"mask{s[1:]}.tif" for s in stems} | {"res_track.txt"}
    tracks = np.loadtxt(out / "01_RES" / "res_track.txt", dtype=int, ndmin=2)
    alive = {(label, t) for label, begin, end, _ in tracks.tolist() for t in range(begin, end + 1)}
    masks = {int(s[1:]): tifffile.imread(out / "01_RES" / f"mask{s[1:]}.tif") for s in stems}
    assert alive == {(int(i), t) for t, labels in masks.items() for i in np.unique(labels) if i}


def test_stacks_keep_their_pages(infer, scene, tmp_path):
    frames = np.stack([tifffile.imread(scene / "01" / f"t00{i}.tif") for i in range(3)])
    low = ((frames - frames.min()) / 16).astype(np.uint8)
    tifffile.imwrite(tmp_path / "named.tif", frames, metadata={"axes": "TYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", np.stack([0 * low, low], -1), metadata={"axes": "TYXC"})
    out = tmp_path / "out"
    assert infer(tmp_path / "named.tif", "--output-dir", out).code == 0
    assert infer(tmp_path / "two.tif", "--channel", 1, "--output-dir", out).code == 0
    infer(tmp_path / "two.tif", "--output-dir", out).mistake("two.tif", "--channel 0...1", code=1)
    for stem in ("named", "two"):
        with tifffile.TiffFile(out / f"{stem}_mask.tif") as tiff:
            assert (len(tiff.pages), tiff.series[0].axes) == (3, "TYX")
            assert "checkpoint_sha256" in tiff.pages[0].description
            masks = tiff.asarray()
        probability = tifffile.imread(out / f"{stem}_prob.tif")
        assert (masks.dtype, probability.dtype, probability.shape) == (np.uint8, np.float32, masks.shape)
        assert set(np.unique(masks)) == {0, 255}
        counts = table(out / f"{stem}_counts.csv")
        assert [row["frame"] for row in counts] == ["0", "1", "2"]
        assert sorted(p.name for p in (out / f"{stem}_RES").glob("*.tif")) == [f"mask00{i}.tif" for i in range(3)]
        assert validate_sequence(str(out / f"{stem}_RES"), threads=1)["Valid"] == 1


def test_flags_change_what_they_say(infer, scene, tmp_path):
    frame = scene / "01" / "t001.tif"

    def probability(*flags, path=frame):
        result = infer(path, *flags, "--amp", "off", "--output-dir", tmp_path / "out")
        assert result.code == 0, result.err
        return tifffile.imread(tmp_path / "out" / f"01_{path.stem}_prob.tif"), result.err

    plain, _ = probability()
    for flags in (("--tta",), ("--scale", 0.5), ("--tile-size", 64, "--overlap", 0.5), ("--input-range", 32768, 34000)):
        other, err = probability(*flags)
        assert other.shape == plain.shape
        assert 1e-6 < np.abs(other - plain).mean() < 0.6, flags
        assert "warning" not in err
    # A range that is hardly used is said; the values are taken as asked for.
    _, err = probability("--input-range", 0, 65535)
    assert "warning" in err
    assert "--input-range" in err
    # Thresholds: a mask of everything and one of almost nothing.
    shares = []
    for threshold in (0, float(np.median(plain)), 1):
        probability("--threshold", threshold)
        shares.append(np.asarray(Image.open(tmp_path / "out" / "01_t001_mask.png")).mean() / 255)
    assert shares[0] == 1 > shares[1] > shares[2]


def test_several_checkpoints_are_averaged(call, scene, checkpoint, tmp_path):
    frame, other = scene / "01" / "t001.tif", checkpoint.with_name("last.pt")
    found = []
    for files in ([checkpoint], [other], [checkpoint, other]):
        result = call("infer", "--checkpoint", *files, frame, "--amp", "off", "--output-dir", tmp_path / "out")
        assert result.code == 0, result.err
        found.append(tifffile.imread(tmp_path / "out" / "01_t001_prob.tif"))
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=1e-5)


def test_one_bad_input_does_not_stop_the_others(infer, own_scene, tmp_path):
    folder, out = own_scene / "01", tmp_path / "out"
    data = (folder / "t000.tif").read_bytes()
    (folder / "t000.tif").write_bytes(data[: len(data) // 2])
    small = tifffile.imread(folder / "t001.tif")[:80, :81]
    tifffile.imwrite(folder / "t001.tif", small)  # before the others, which must not be measured by it
    frame = tifffile.imread(folder / "t003.tif").astype(np.float32)
    tifffile.imwrite(folder / "t003.tif", (255 * (frame - frame.min()) / np.ptp(frame)).astype("u1"))
    result = infer(folder, "--output-dir", out)
    result.mistake(folder / "t000.tif", code=1)
    assert len([line for line in result.err.splitlines() if "t000.tif" in line]) == 1
    assert "t001.tif: 80 x 81, unlike the others" in result.err
    assert "t003.tif: uint8, most of its sequence uint16" in result.err
    assert "4 of 5 files" in result.err
    assert np.asarray(Image.open(out / "01_t001_mask.png")).shape == (80, 81)
    assert {p.name for p in (out / "01_RES").glob("*.tif")} == {"mask002.tif", "mask003.tif", "mask004.tif"}
    assert infer(folder / "t000.tif", "--output-dir", tmp_path / "none").code == 1


def test_outputs_are_no_inputs_and_inputs_stay(infer, own_scene, tmp_path):
    folder = own_scene / "01"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(2):  # the second time the folder holds the first one's outputs
        result = infer(folder, "--output-dir", folder)
        assert "5 of 5 files" in result.err, result.err
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "01_RES" / "res_track.txt").exists()
    # Files with one stem keep their extension in the outputs' names.
    Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(tmp_path / "t000.png")
    out = tmp_path / "out"
    assert infer(folder / "t000.tif", tmp_path / "t000.png", "--output-dir", out).code == 0
    assert np.asarray(Image.open(out / "01_t000.tif_mask.png")).shape == (96, 128)
    assert np.asarray(Image.open(out / f"{tmp_path.name}_t000.png_mask.png")).shape == (40, 40)
    shutil.copy(folder / "t000.tif", tmp_path / "cells16.tif")  # one file is no sequence, whatever its name ends in
    assert infer(tmp_path / "cells16.tif", "--output-dir", tmp_path / "one").code == 0
    assert not list((tmp_path / "one").glob("*_RES"))
    # An input in the place of an output.
    stack = np.stack([tifffile.imread(folder / "t000.tif")] * 5)
    for name in ("a.tif", "a_mask.tif"):
        tifffile.imwrite(tmp_path / name, stack, metadata={"axes": "TYX"})
    infer(tmp_path / "a.tif", tmp_path / "a_mask.tif", "--output-dir", tmp_path).mistake("a_mask.tif is an input")
    # A folder that only looks like a result.
    (tmp_path / "res" / "01_RES").mkdir(parents=True)
    (tmp_path / "res" / "01_RES" / "thesis.txt").write_text("years of work")
    infer(folder, "--output-dir", tmp_path / "res").mistake("thesis.txt is in the way", "01", code=1)
    assert (tmp_path / "res" / "01_RES" / "thesis.txt").exists()


def test_frames_out_of_order_and_folders_of_one_name(infer, scene, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(scene / "01", tmp_path / place / "01")
    out = tmp_path / "out"
    paths = [tmp_path / "a" / "01" / f"t00{i}.tif" for i in (3, 0, 2)]
    result = infer(*paths, tmp_path / "b" / "01", "--output-dir", out)
    assert result.code == 0, result.err
    folders = {len(list(path.glob("*.tif"))) for path in out.glob("*_RES")}
    assert folders == {3, 5}
    (whole,) = (path for path in out.glob("*_RES") if len(list(path.glob("*.tif"))) == 5)
    assert validate_sequence(str(whole), threads=1)["Valid"] == 1


def test_mistakes_are_one_line_and_exit_2(call, infer, scene, checkpoint, tmp_path):
    frame = scene / "01" / "t000.tif"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    call("infer", frame, "--checkpoint", tmp_path / "no.pt").mistake("no.pt")
    call("infer", frame, "--checkpoint", frame).mistake("t000.tif")
    infer().mistake("INPUT")
    infer(tmp_path / "empty").mistake("empty")
    infer(tmp_path / "nowhere.tif").mistake("nowhere.tif")
    infer(frame, "--output-dir", tmp_path / "file").mistake("--output-dir")
    for flags in (("--threshold", 1.2), ("--threshold", "nan"), ("--scale", 0), ("--tile-size", 1),
                  ("--tile-size", -1), ("--overlap", "nan"), ("--overlap", 1),
                  ("--input-range", 5, 5), ("--axes", "TYY"), ("--channel", -1), ("--min-area", -1),
                  ("--device", "abacus")):  # fmt: skip
        infer(frame, *flags).mistake(flags[0])
    assert not list(tmp_path.rglob("*_mask*"))


def test_interrupted_it_leaves_whole_files_only(started, scene, checkpoint, tmp_path):
    stack = np.stack([tifffile.imread(scene / "01" / "t000.tif")] * 2000)
    tifffile.imwrite(tmp_path / "long.tif", stack, metadata={"axes": "TYX"}, compression="zlib")
    out = tmp_path / "out"
    paths = [scene / "01", tmp_path / "long.tif"]
    process = started("infer", *paths, "--checkpoint", checkpoint, "--output-dir", out, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (out / "01_t004_counts.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert not list(out.glob(".*"))
    assert not list(out.glob("long*"))
    assert len(list(out.glob("01_t00*_mask.png"))) == 5


def test_a_sequence_without_nuclei_has_no_empty_challenge_result(infer, scene, tmp_path):
    result = infer(scene / "01", "--threshold", 1, "--output-dir", tmp_path / "out")
    assert result.code == 0 and "no nucleus in any frame, so no 01_RES" in result.err
    assert not (tmp_path / "out" / "01_RES").exists()
    assert table(tmp_path / "out" / "01_t000_counts.csv") == [{"frame": "0", "nuclei": "0"}]


def test_sequences_of_two_folders_do_not_meet(infer, scene, tmp_path):
    for name in ("01", "02"):
        assert infer(scene / name / "t001.tif", "--output-dir", tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").glob("*_mask.png")} == {"01_t001_mask.png", "02_t001_mask.png"}


def test_polygons_and_figure_beside_the_masks(infer, scene, tmp_path):
    out, frame = tmp_path / "out", scene / "01" / "t003.tif"
    result = infer(frame, "--output-dir", out, "--vector", "geojson", "--figure")
    assert result.code == 0, result.err
    features = json.loads((out / "01_t003.geojson").read_text())["features"]
    rows = table(out / "01_t003_nuclei.csv")
    assert [one["properties"]["id"] for one in features] == [int(row["label"]) for row in rows] and features
    assert [one["properties"]["area"] for one in features] == [int(row["area"]) for row in rows]
    assert {one["properties"]["frame"] for one in features} == {3}
    with Image.open(out / "01_t003_figure.png") as figure:
        assert figure.size[0] > 1500
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.stack([tifffile.imread(path) for path in sorted((scene / "01").glob("*.tif"))]),
                     metadata={"axes": "TYX"})  # fmt: skip
    assert infer(stack, "--output-dir", out, "--vector", "roi").code == 0
    names = zipfile.ZipFile(out / "stack_rois.zip").namelist()
    counts = {int(row["frame"]): int(row["nuclei"]) for row in table(out / "stack_counts.csv")}
    assert {frame: sum(name.startswith(f"{frame:04d}-") for name in names) for frame in counts} == counts
    assert not (out / "stack_figure.png").exists() and not (out / "stack.geojson").exists()


def test_workers_give_the_results_of_one_process(call, command, own_scene, tmp_path):
    frames = np.stack([tifffile.imread(file) for file in sorted((own_scene / "02").iterdir())])
    tifffile.imwrite(own_scene / "stack.tif", frames, metadata={"axes": "TYX"}, imagej=True)
    (own_scene / "01" / "t002.tif").write_bytes(b"no frame")
    inputs = [own_scene / name for name in ("01", "02", "stack.tif")]
    flags = ("--checkpoint", "shipped", "--vector", "geojson", "--output-dir")
    one = call("infer", *inputs, *flags, tmp_path / "one")
    two = command("infer", *inputs, *flags, tmp_path / "two", "--workers", 2, cwd=tmp_path)
    for result in (one, two):
        assert result.code == 1 and "t002.tif" in result.err and "10 of 11 files" in result.err, result.err
    found = [{path.relative_to(tmp_path / name).as_posix(): path for path in (tmp_path / name).rglob("*.*")}
             for name in ("one", "two")]  # fmt: skip
    assert found[0].keys() == found[1].keys() >= {"01_RES/res_track.txt", "02_RES/mask004.tif", "stack_prob.tif"}
    for name, path in found[0].items():
        assert name == RECORD or path.read_bytes() == found[1][name].read_bytes(), name
