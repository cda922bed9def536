"""Make a video of frames beside their prediction: ``python hela_nuclei/make_video.py 01 --out result.mp4``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from common.command.cli import PARTIAL, run_command, say
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.files import atomic_path
from common.images.display import Pixels, stretch
from common.networks.checkpoint import ModelCard, newest_checkpoint
from common.networks.precision import choose_precision
from hela_nuclei.data import find_frames
from hela_nuclei.draw import outlines, viridis
from hela_nuclei.frames import check_axes, read_stack, scale_frame
from hela_nuclei.predict import Predictor
from hela_nuclei.task import TASK

CODECS = {".avi": "XVID", ".mp4": "mp4v"}


@dataclass(frozen=True)
class Config:
    """Make a video: each frame beside its prediction, one video frame per input frame."""

    input: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, stacks or folders. Default: the test (else validation) frames of the newest run."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s); several are averaged. Default: the newest run's best."""
    out: Path | None = None
    """Video, .avi (XVID) or .mp4 (mp4v). Default: predictions.avi in the run folder; outputs/hela_nuclei/INPUT.avi."""
    fps: float = 2.0
    """Frames per second."""
    threshold: float | None = None
    """Nucleus where P is at least this; default: the checkpoint's."""
    style: Literal["mask", "contours"] = "mask"
    """mask: the prediction in viridis colors; contours: the outline of every nucleus on the frame."""
    axes: str | None = None
    """What the dimensions of a TIFF mean, such as TYXC; default: its metadata."""
    channel: int | None = None
    """Channel that shows the nuclei; default: green of three, required for two."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision."""


def main() -> int:
    """Load networks, predict frame by frame, write the video."""
    config = parse_flags(Config)
    if not 0 < config.fps <= 1000:
        raise ValueError(f"--fps {config.fps} must be greater than 0 and at most 1000")
    check_axes(config.axes)
    if config.out is not None and config.out.suffix.lower() not in CODECS:
        raise ValueError(f"--out {config.out}: the suffix must be .avi or .mp4")
    checkpoints = list(config.checkpoint) or [newest_checkpoint(TASK.name)]
    say(f"checkpoint: {', '.join(map(str, checkpoints))}")
    predictor, card = Predictor.load(
        checkpoints, choose_precision(config.device, config.amp), threshold=config.threshold
    )
    paths = find_images(config.input) if config.input else split_frames(card, checkpoints[0])
    out = config.out or default_output(config.input, checkpoints[0])
    shape, problems = look(paths, config)
    for problem in problems.values():
        say(f"failed: {problem}")
    good = [path for path in paths if path not in problems]
    if good:
        pictures = (side_by_side(frame, predictor, config.style) for frame in frames_of(good, config))
        with atomic_path(out) as temporary:
            count = write_video(temporary, pictures, shape, config.fps)
        say(f"{count} frames to {out}")
    return PARTIAL if problems else 0


def split_frames(card: ModelCard, checkpoint: Path) -> list[Path]:
    """The images of a run's test part, or of its validation part where there is no test part.

    Raises:
        ValueError: the training data are no longer where they were.
    """
    root = Path(card.data_root)
    ids = set(card.split.get("test") or card.split.get("val") or [])
    if not card.data_root or not root.is_dir():
        raise ValueError(
            f"the data that {checkpoint} was trained on are not at '{card.data_root}' any more; give INPUT"
        )
    images, labels = (Path(card.config[key]) if card.config.get(key) else None for key in ("images", "labels"))
    found = find_frames(root, images=images, labels=labels, truth=str(card.config.get("truth", "ST")))
    paths = [frame.image for frame in found.frames if frame.id in ids]
    if not paths:
        raise ValueError(f"none of the {len(ids)} test frames of {checkpoint} is under {root} any more; give INPUT")
    return paths


def default_output(inputs: Sequence[Path], checkpoint: Path) -> Path:
    """Beside the checkpoint without INPUT, else under outputs/."""
    if not inputs:
        return checkpoint.parent / "predictions.avi"
    return Path("outputs") / TASK.name / f"{inputs[0].resolve().stem}.avi"


def frames_of(paths: Sequence[Path], config: Config) -> Iterator[NDArray[np.generic]]:
    """The frames of all inputs in order."""
    for path in tqdm(paths, desc="video", unit="file", disable=None):
        yield from read_stack(path, config.axes, config.channel).frames


def look(paths: Sequence[Path], config: Config) -> tuple[tuple[int, int], dict[Path, str]]:
    """Height and width that hold every frame, and what is wrong with the inputs that cannot be read."""
    height, width, problems = 0, 0, {}
    for path in paths:
        try:
            shape = read_stack(path, config.axes, config.channel).frames.shape
            height, width = max(height, shape[1]), max(width, shape[2])
        except (ValueError, OSError) as error:
            problems[path] = str(error)
    return (height, width), problems


def side_by_side(frame: NDArray[np.generic], predictor: Predictor, style: str) -> tuple[Pixels, Pixels]:
    """A frame and its prediction as pictures."""
    prediction = predictor(scale_frame(frame))
    return stretch(frame), viridis(prediction.mask) if style == "mask" else outlines(frame, prediction.nuclei())


def write_video(path: Path, pairs: Iterator[tuple[Pixels, Pixels]], shape: tuple[int, int], fps: float) -> int:
    """Write pairs of pictures side by side, padded to ``shape`` and to even sizes, as codecs need; returns how many.

    Raises:
        ValueError: the codec is missing.
    """
    height, width = (size + size % 2 for size in shape)
    writer: cv2.VideoWriter | None = None
    count = 0
    try:
        for pictures in pairs:
            if writer is None:
                writer = cv2.VideoWriter(
                    str(path), cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()]), fps, (2 * width, height)
                )
                if not writer.isOpened():
                    raise ValueError(
                        f"this OpenCV has no {CODECS[path.suffix.lower()]} encoder; choose another suffix for --out"
                    )
            padded = [np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0))) for p in pictures]
            writer.write(np.ascontiguousarray(np.hstack(padded)[..., ::-1]))
            count += 1
    finally:
        if writer is not None:
            writer.release()
    return count


if __name__ == "__main__":
    run_command(main)
