import csv
import json
import shutil
import signal
import time

import numpy as np
import tifffile
import yaml

from common.networks.checkpoint import load_checkpoint
from common.training.runs import MARKER

FILES = {"config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "metrics.csv", "curves.png", "predictions.png",
         "test_metrics.json", "report.html", MARKER}  # fmt: skip
TINY = ("--crop-size", 32, "--samples-per-epoch", 4, "--batch-size", 2, "--border", 5, "--device", "cpu")


def test_a_run_leaves_everything_behind(training):
    result, folder = training
    assert result.out == ""
    assert "Warning" not in result.err
    for words in ("frames with a mask:     10", "96 x 128 (10)", "uint16", "instance ids", "share of pixels", "0.483 M",
                  "train 8, val 1, test 1", "min"):  # fmt: skip
        assert words in result.err
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    others = {name.split(".")[0] for name in names - FILES}
    assert "events" in others and others <= {"events", "suspects", "provenance"}  # provenance: of other commands
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    columns = {"lr", "train_loss", "val_loss", "pixel_accuracy", "miou", "iou_background", "iou_nucleus", "f1"}
    columns |= {"seconds", "samples_per_second", "peak_memory_mb"}
    assert columns <= rows[0].keys()
    assert max(float(row["miou"]) for row in rows) > 0.7  # everything background gives about 0.35
    scores = json.loads((folder / "test_metrics.json").read_text())
    assert (scores["task"], scores["split"], scores["n_images"]) == ("hela_nuclei", "test", 1)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["epochs"], config["crop_size"], config["separation"]) == (3, 64, "distance")
    card, _, state = load_checkpoint(folder / "best_iou.pt", "hela_nuclei")
    assert sorted(map(len, card.split.values())) == [1, 1, 8]
    assert card.config["loss"] == "bce+dice"
    assert not state
    page = (folder / "report.html").read_text()
    assert "hela_nuclei" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_mistakes_are_one_line_and_exit_2(call, scene, training, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    (tmp_path / "type.yaml").write_text("epochs: many\n")
    root = ("--data-root", scene)
    call("train", "--data-root", tmp_path / "nowhere").mistake("nowhere")
    call("train", "--data-root", tmp_path / "empty").mistake("empty")
    call("train", "--data-root", scene, "--truth", "GT", "--images", tmp_path / "empty").mistake("--labels")
    call("train", "--images", tmp_path / "empty", "--labels", scene / "01_ST" / "SEG").mistake("empty")
    call("train", *root, "--output-dir", training[1]).mistake("not empty", training[1])
    call("train", *root, "--config", tmp_path / "bad.yaml").mistake("bad.yaml", "'epoch'", "'epochs'")
    call("train", *root, "--config", tmp_path / "type.yaml").mistake("type.yaml", "epochs", "many")
    call("train", *root, "--config", tmp_path / "no.yaml").mistake("no.yaml")
    call("train", *root, "--lr", "fast").mistake("lr")
    call("train", *root, "--epoch", 3).mistake("--epoch")
    call("train", *root, "--crop-size", 4).mistake("--crop-size 4")
    call("train", *root, "--border", -1).mistake("--border")
    call("train", *root, "--loss", "magic").mistake("magic")
    call("train", *root, "--weights", "imagenet").mistake("--arch unet_resnet18")
    call("train", *root, "--weights", tmp_path / "no.pt").mistake("no.pt")
    call("train", *root, "--resume", tmp_path / "no.pt").mistake("no.pt")
    assert not list(tmp_path.rglob("runs"))
    assert not list(tmp_path.rglob("data"))  # never the demo


def spoil(root):
    """Every kind of bad or odd file; returns the words that name the bad ones."""
    frames, masks = root / "01", root / "01_ST" / "SEG"
    data = (frames / "t000.tif").read_bytes()
    (frames / "t000.tif").write_bytes(data[: len(data) // 2])
    tifffile.imwrite(frames / "t001.tif", np.zeros((90, 128), "u2"))  # its mask is 96 x 128
    for path in (frames / "t002.tif", masks / "man_seg002.tif"):
        tifffile.imwrite(path, tifffile.imread(path)[:80])  # of another size than the others
    (frames / "t003.tif").unlink()
    (masks / "man_seg004.tif").unlink()
    frame = tifffile.imread(root / "02" / "t000.tif").astype(np.float32)
    tifffile.imwrite(root / "02" / "t000.tif", (255 * (frame - frame.min()) / np.ptp(frame)).astype("u1"))
    data = (root / "02_ST" / "SEG" / "man_seg001.tif").read_bytes()
    (root / "02_ST" / "SEG" / "man_seg001.tif").write_bytes(data[:200])
    return ["01/t000.tif", "01/t001.tif is 90 x 128", "01/t002.tif is 80 x 128", "man_seg001.tif"]


def test_bad_files_are_all_named_and_stop_unless_skipped(call, own_scene, tmp_path):
    bad = spoil(own_scene)
    source = ("--data-root", own_scene, "--epochs", 1, "--border", 5)  # source.yaml: whole frames
    result = call("train", *source)
    result.mistake("4 bad", "--skip-bad")
    lines = [line for line in result.err.splitlines() if line.startswith("bad: ")]
    assert len(lines) == 4
    for words in bad:
        assert any(words in line for line in lines), words
    for words in ("1 frame(s) without a mask", "t004.tif", "1 mask(s) without a frame", "man_seg003.tif"):
        assert words in result.err
    for flags in ((), ("--crop-size", 32)):  # crops may come from frames of any size
        out = tmp_path / f"run{len(flags)}"
        result = call("train", *source, *flags, "--skip-bad", "--output-dir", out)
        assert result.code == 0, result.err
        assert "Traceback" not in result.err
        assert f"frames with a mask:     {5 if flags else 4}" in result.err
        assert "uint8 (1: 02/t000)" in result.err
        assert (out / "report.html").exists()


def test_the_demo_says_so_first_and_a_config_alone_runs_on_it(call, monkeypatch, tmp_path):
    def small(folder, **options):
        from hela_nuclei.scenes.sequences import write_challenge

        write_challenge(folder, sequences=1, frames=3, height=64, width=80, seed=1)

    monkeypatch.setattr("hela_nuclei.train.write_challenge", small)
    result = call("train", *TINY, "--epochs", 1)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0].startswith("demo: no data given")
    (folder,) = (tmp_path / "elsewhere" / "runs" / "hela_nuclei").iterdir()
    assert folder.name.startswith("demo-")
    (tmp_path / "own.yaml").write_text(
        "epochs: 1\nlr: 1e-4\namp: off\naugment: no\nwidths: [8, 8, 8, 8]\nweights: none\n"
    )
    result = call("train", "--config", tmp_path / "own.yaml", *TINY, "--output-dir", tmp_path / "own")
    assert result.code == 0, result.err
    config = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())
    assert (config["lr"], config["amp"], config["augment"], config["widths"]) == (1e-4, "off", False, [8] * 4)
    result = call("train", "--overfit-one", "--weights", "none", "--widths", 8, 8, 8, 8, "--border", 5)
    assert result.code == 0
    assert float(result.out.split()[-1]) > 0.9
    assert len(list((tmp_path / "elsewhere" / "runs" / "hela_nuclei").iterdir())) == 1


def test_sigterm_saves_and_resume_goes_on(started, command, scene, tmp_path):
    flags = ("--data-root", scene, *TINY, "--epochs", 300, "--lr", 1e-3, "--output-dir", tmp_path / "run")
    process = started("train", *flags, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "--resume" in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [MARKER]
    done = load_checkpoint(tmp_path / "run" / "last.pt")[2]["epoch"]
    result = command("train", *flags, "--epochs", done + 2, "--resume", "auto", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "resumed" in result.err
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, done + 3))


def test_the_other_tasks_small_network(call, scene, tmp_path):
    flags = ("--arch", "unet_small", "--widths", 4, 8, 8, 8, "--separation", "distance", "--epochs", 1)
    result = call("train", "--data-root", scene, *TINY, *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt", "hela_nuclei")
    assert (card.arch, card.maps, card.arch_args["widths"]) == ("unet_small", ("distance",), [4, 8, 8, 8])
    result = call("infer", scene / "01" / "t000.tif", "--checkpoint", tmp_path / "run" / "best_iou.pt")
    assert result.code == 0, result.err


def test_images_and_labels_and_resume_without_a_run(call, scene, tmp_path):
    shutil.copytree(scene / "01", tmp_path / "a")
    shutil.copytree(scene / "01_ST" / "SEG", tmp_path / "b")
    flags = ("--images", "../a", "--labels", "../b", *TINY, "--epochs", 1, "--arch", "unet_resnet18")
    result = call("train", *flags, "--resume", "auto", "--workers", 1)
    assert result.code == 0, result.err
    assert "starting anew" in result.err
    (folder,) = (tmp_path / "elsewhere" / "runs" / "hela_nuclei").iterdir()
    for command in (("evaluate", "--checkpoint", folder / "best_iou.pt", "--images", "../a", "--labels", "../b"),
                    ("make_video", "--checkpoint", folder / "best_iou.pt")):  # fmt: skip
        result = call(*command)
        assert result.code == 0, result.err
    assert (folder / "predictions.avi").exists()
