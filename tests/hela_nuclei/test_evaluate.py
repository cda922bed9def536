import json

import pytest
import torch

from common.metrics.split_scores import SCORE_KEYS
from hela_nuclei.task import TASK

KEYS = {"task", "split", *SCORE_KEYS, "iou_foi", "iou_mean_per_image", "seg", "det", "per_sequence"}


def test_the_last_line_is_json_and_everything_else_is_on_stderr(command, scene, training, checkpoint, tmp_path):
    flags = ("--checkpoint", checkpoint, "--data-root", scene, "--border", 10)
    result = command("evaluate", *flags, "--amp", "off", cwd=tmp_path)
    assert result.code == 0, result.err
    (line,) = result.out.splitlines()
    scores = json.loads(line, parse_constant=pytest.fail)
    assert set(scores) == KEYS
    saved = json.loads((training[1] / "test_metrics.json").read_text())
    assert scores["n_images"] == 1
    for key in ("iou", "iou_foi", "loss", "seg", "threshold"):  # bf16 there, where the machine has it
        assert scores[key] == pytest.approx(saved[key], abs=0.03)
    assert scores["per_class_iou"].keys() == {"background", "nucleus"}
    assert scores["per_class_iou"]["nucleus"] == scores["iou"]


def test_splits_roots_and_thresholds(call, scene, own_scene, checkpoint, tmp_path):
    def evaluate(*flags, root=scene):
        result = call("evaluate", "--checkpoint", checkpoint, "--data-root", root, "--border", 10, *flags)
        assert result.code == 0, result.err
        return json.loads(result.out)

    everything = evaluate("--split", "all")
    assert {name: part["n_frames"] for name, part in everything["per_sequence"].items()} == {"01": 5, "02": 5}
    assert everything["n_pixels"] == 10 * 96 * 128
    assert [evaluate("--split", part)["n_images"] for part in ("train", "val")] == [8, 1]
    assert evaluate("--split", "all", "--threshold", 0)["iou"] < everything["iou"]
    assert evaluate("--split", "all", "--truth", "GT")["n_images"] < 10
    assert evaluate("--split", "all", root=own_scene)["iou"] == everything["iou"]
    (own_scene / "01" / "t001.tif").write_bytes(b"II*\0")
    (own_scene / "02_ST" / "SEG" / "man_seg003.tif").unlink()
    result = call("evaluate", "--checkpoint", checkpoint, "--data-root", own_scene, "--split", "all")
    result.mistake("t001.tif", code=1)
    assert "02/t003.tif" in result.err
    assert json.loads(result.out)["n_images"] == 8
    call("evaluate", "--checkpoint", checkpoint, "--data-root", own_scene).mistake("--split all", own_scene)
    call("evaluate", "--checkpoint", checkpoint).mistake("--data-root")
    call("evaluate", "--data-root", scene).mistake("--checkpoint")
    call("evaluate", "--checkpoint", checkpoint, "--data-root", scene, "--threshold", 2).mistake("--threshold")
    call("evaluate", "--checkpoint", checkpoint, "--data-root", scene, "--border", -3).mistake("--border")
    call("evaluate", "--checkpoint", checkpoint, "--data-root", tmp_path / "no", "--split", "all").mistake("no")


def test_a_checkpoint_of_the_notebook(call, scene, tmp_path):
    torch.manual_seed(0)
    torch.save({"model_state_dict": TASK.build("unet").state_dict()}, tmp_path / "unet.pth")
    flags = ("--checkpoint", tmp_path / "unet.pth", "--data-root", scene)
    call("evaluate", *flags).mistake("--split all")
    result = call("evaluate", *flags, "--split", "all")
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    assert scores["threshold"] == 0.5
    assert set(scores) == KEYS
