"""By which range frames are read: their own extremes, or one that is given and then stored."""

import json
import os

import numpy as np
import tifffile

from common.networks.checkpoint import load_checkpoint

SHORT = ("--epochs", "1", "--crop-size", "64", "--samples-per-epoch", "8", "--border", "10", "--device", "cpu")


def test_a_given_range_is_stored_and_used(call, own_scene, tmp_path):
    place = ("--data-root", own_scene, "--output-dir", tmp_path / "run")
    result = call("train", *SHORT, *place, "--input-range", "0", "65535")
    assert result.code == 0 and "uint16" in result.err and "read with the range 0 to 65535" in result.err
    card = load_checkpoint(tmp_path / "run" / "last.pt")[0]
    assert card.normalization == {"range": [0.0, 65535.0], "range_types": ["uint16"]}

    score = ("evaluate", "--checkpoint", tmp_path / "run" / "last.pt", "--data-root", own_scene, "--split", "all")
    stored, given, other = (
        json.loads(call(*score, "--device", "cpu", *flags).out.splitlines()[-1])["loss"]
        for flags in ((), ("--input-range", "0", "65535"), ("--input-range", "30000", "40000"))
    )
    assert stored == given != other

    frame = own_scene / "01" / "t000.tif"
    outs = [tmp_path / name for name in ("stored", "given", "other")]
    for out, flags in zip(outs, ((), ("--input-range", 0, 65535), ("--input-range", 30000, 40000)), strict=True):
        place = ("--checkpoint", tmp_path / "run" / "last.pt", "--output-dir", out, "--device", "cpu")
        assert call("infer", frame, *place, *flags).code == 0
    stored, given, other = (tifffile.imread(next(out.glob("*_prob.tif"))) for out in outs)
    np.testing.assert_array_equal(stored, given)
    assert np.abs(stored - other).max() > 1e-4


def test_a_pipe_among_the_frames_is_left_out_by_name(call, own_scene, tmp_path):
    os.mkfifo(own_scene / "01" / "t999.tif")
    result = call("train", *SHORT, "--data-root", own_scene, "--output-dir", tmp_path / "run")
    assert result.code == 0 and "no regular files: t999.tif" in result.err
    assert load_checkpoint(tmp_path / "run" / "last.pt")[0].normalization["range"] == "minimum to maximum of each frame"
