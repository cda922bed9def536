from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
import tifffile

from common.images.display import stretch
from common.networks.checkpoint import load_checkpoint
from hela_nuclei import make_video
from hela_nuclei.draw import CAPTION
from hela_nuclei.make_video import in_order


@pytest.fixture
def video(call, checkpoint):
    return lambda *args: call("make_video", *args, "--checkpoint", checkpoint)


def frames_of(path):
    """Frames, and rate, of a video as a player sees them; RGB."""
    reader = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = reader.read()
        if not good:
            return np.array(frames), reader.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1])


@pytest.mark.parametrize(("suffix", "style"), [(".avi", "mask"), (".mp4", "contours"), (".mp4", "mask")])
def test_one_frame_per_input_frame(video, scene, tmp_path, suffix, style):
    stack = np.stack([tifffile.imread(scene / "01" / f"t00{i}.tif") for i in range(4)])
    stack = np.pad(stack, ((0, 0), (0, 1), (0, 1)), mode="edge")  # 97 x 129
    tifffile.imwrite(tmp_path / "odd.tif", stack, metadata={"axes": "TYX"}, photometric="minisblack")
    out = tmp_path / f"film{suffix}"
    result = video(tmp_path / "odd.tif", scene / "01", "--out", out, "--style", style, "--fps", 5)
    assert result.code == 0, result.err
    assert "9 frames" in result.err
    assert len(result.err.splitlines()) == 2  # nothing from the codecs
    frames, rate = frames_of(out)
    assert frames.shape == (9, CAPTION + 98, 260, 3)
    assert rate == pytest.approx(5)
    with av.open(str(out)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == (
            ("mpeg4", "yuv420p") if suffix == ".avi" else ("h264", "yuv420p")
        )
    captions, frames = frames[:, :CAPTION], frames[:, CAPTION:]
    assert (captions.max(axis=(1, 2, 3)) > 200).all(), "each frame's name and number in white"
    assert all(np.abs(a.astype(int) - b).max() > 60 for a, b in pairwise(captions)), "which differ"
    first = frames[0, :97, :129].astype(float)
    assert np.abs(first - stretch(stack[0])).mean() < 12
    right = frames[0, :97, 130:259].astype(float)
    if style == "mask":  # the two ends of viridis, blurred by the codec
        ends = np.array([[68, 1, 84], [253, 231, 37]], float)
        distance = np.linalg.norm(right[..., None, :] - ends, axis=-1).min(-1)
        assert np.median(distance) < 40
        assert 0.02 < (right[..., 1] > 116).mean() < 0.9
    else:
        assert np.abs(right - first).mean() > 0.5
    assert not list(tmp_path.glob(".*"))


def test_without_input_the_test_frames_of_the_newest_run(call, training):
    _, folder = training
    result = call("make_video", cwd=folder.parents[2])
    assert result.code == 0, result.err
    card, _ = load_checkpoint(folder / "best_iou.pt")[:2]
    assert len(card.split["test"]) < 5
    assert len(frames_of(folder / "predictions.avi")[0]) == 5, "the whole sequence of the test part's first frame"
    (folder / "predictions.avi").unlink()


def test_frames_of_one_film_by_their_numbers_and_never_mixed(tmp_path):
    names = ("01/t9.tif", "02/t1.tif", "01/t10.tif", "02/t0.tif", "01/overview.tif")
    paths = [tmp_path / name for name in names]
    assert [str(path.relative_to(tmp_path)) for path in in_order(paths)] == [
        "01/t9.tif", "01/t10.tif", "02/t0.tif", "02/t1.tif", "01/overview.tif",
    ]  # fmt: skip


def test_the_captions_tell_the_part_that_a_frame_was_in(call, training, monkeypatch):
    lines = []
    monkeypatch.setattr(make_video, "captioned", lambda picture, text: (lines.append(text), picture)[1])
    _, folder = training
    assert call("make_video", cwd=folder.parents[2]).code == 0
    (folder / "predictions.avi").unlink()
    assert len({line.split("    ")[1].split("/")[0] for line in lines}) == 1, "one sequence"
    assert [line.split("    ")[1][-4:] for line in lines] == [f"t00{i}" for i in range(5)]
    assert [line.split("    ")[0] for line in lines] == [f"frame {i} of 5" for i in range(1, 6)]
    assert {line.split("    ")[2] for line in lines} >= {"train part", "test part"}


def test_a_missing_encoder_is_named(video, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    video(scene / "01" / "t000.tif", "--out", tmp_path / "a.mp4").mistake("libx264", "pip install av")
    assert not list(tmp_path.glob("*.mp4"))


def test_mistakes(call, video, own_scene, tmp_path):
    frame = own_scene / "01" / "t000.tif"
    call("make_video").mistake("give INPUT")
    video(tmp_path / "no.tif").mistake("no.tif")
    video(frame, "--out", tmp_path / "a.gif").mistake("--out", ".avi or .mp4")
    video(frame, "--fps", 0).mistake("--fps")
    video(frame, "--threshold", -1).mistake("--threshold")
    frame.write_bytes(frame.read_bytes()[:300])
    video(own_scene / "01", "--out", tmp_path / "a.avi").mistake("t000.tif", code=1)
    assert len(frames_of(tmp_path / "a.avi")[0]) == 4
    video(frame, "--out", tmp_path / "b.avi").mistake("t000.tif", code=1)
    assert not (tmp_path / "b.avi").exists()


def test_only_a_video_of_the_same_frames_is_replaced(video, own_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(make_video, "write_video", lambda path, pictures, fps: path.write_bytes(b"film"))
    frames, target = own_scene / "01", tmp_path / "a.avi"
    target.write_text("mine")
    video(frames, "--out", target).mistake("a.avi is in the way", "move it")
    assert target.read_text() == "mine"
    target.unlink()
    for _ in range(2):
        assert video(frames, "--out", target).code == 0
    video(frames / "t000.tif", "--out", target).mistake("a.avi is in the way")


def test_a_full_disk_is_an_error_and_leaves_nothing(video, scene, tmp_path, monkeypatch):
    def full(path, pictures, fps):
        path.write_bytes(b"half a film")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_video, "write_video", full)
    result = video(scene / "01", "--out", tmp_path / "new" / "a.avi")
    assert result.code == 1
    assert "error: the disk is full: [Errno 28] No space left on device" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "new").exists()
