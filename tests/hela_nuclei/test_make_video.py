import cv2
import numpy as np
import pytest
import tifffile

from common.images.display import stretch


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
    assert frames.shape == (9, 98, 260, 3)
    assert rate == pytest.approx(5)
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
    assert len(frames_of(folder / "predictions.avi")[0]) == 1
    (folder / "predictions.avi").unlink()


def test_mistakes(call, video, own_scene, tmp_path):
    frame = own_scene / "01" / "t000.tif"
    call("make_video").mistake("no trained network")
    video(tmp_path / "no.tif").mistake("no.tif")
    video(frame, "--out", tmp_path / "a.gif").mistake("--out", ".avi or .mp4")
    video(frame, "--fps", 0).mistake("--fps")
    video(frame, "--threshold", -1).mistake("--threshold")
    frame.write_bytes(frame.read_bytes()[:300])
    video(own_scene / "01", "--out", tmp_path / "a.avi").mistake("t000.tif", code=1)
    assert len(frames_of(tmp_path / "a.avi")[0]) == 4
    video(frame, "--out", tmp_path / "b.avi").mistake("t000.tif", code=1)
    assert not (tmp_path / "b.avi").exists()
