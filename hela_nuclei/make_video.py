"""Make a video of frames beside their prediction: ``python hela_nuclei/make_video.py 01 --out result.mp4``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal, cast

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import av
import numpy as np
import tyro
from numpy.typing import NDArray

from common.command.cli import PARTIAL, run_command, say
from common.command.config import Amp, Device, check_prediction, parse_flags
from common.command.progress import progress
from common.data.inputs import find_images
from common.images.display import Pixels, stretch
from common.images.ranges import ValueRanges
from common.inference.predictor import Predictor
from common.networks.checkpoint import ModelCard
from common.networks.precision import choose_precision
from common.outputs import OutputFolder
from hela_nuclei.data import find_frames
from hela_nuclei.draw import captioned, outlines, viridis
from hela_nuclei.frames import check_axes, read_stack, scale_frame
from hela_nuclei.predict import NucleiPredictor
from hela_nuclei.results import numbered
from hela_nuclei.task import TASK

ENCODERS = {".avi": ("mpeg4", "XVID", {"qscale": "3"}), ".mp4": ("libx264", "avc1", {"crf": "18"})}
"""Encoder, the name that players know its stream by, and its quality; browsers play H.264 in MP4."""


@dataclass(frozen=True)
class Config:
    """Make a video: each frame beside its prediction, one video frame per input frame.

    Examples:
        python hela_nuclei/make_video.py
        python hela_nuclei/make_video.py Fluo-N2DL-HeLa/01 --style contours --out 01.mp4
    """

    # Input
    input: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, stacks or folders. Default: the whole sequence that the newest run was tested (else validated) on."""
    axes: str | None = None
    """What the dimensions of a TIFF mean, such as TYXC; default: its metadata."""
    channel: int | None = None
    """Channel that shows the nuclei; default: green of three, required for two."""
    # Network
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s), or shipped; several are averaged. Default: the newest run's best, else the weights that ship."""
    threshold: float | None = None
    """Nucleus where P is at least this; default: the checkpoint's."""
    # Output
    out: Path | None = None
    """Video, .mp4 (H.264) or .avi (XVID). Default: predictions.avi in the run folder; outputs/hela_nuclei/INPUT.avi."""
    fps: float = 2.0
    """Frames per second."""
    style: Literal["mask", "contours"] = "mask"
    """mask: the prediction in viridis colors; contours: the outline of every nucleus on the frame."""
    # Machine
    device: Device = "auto"
    """Where to compute."""
    amp: Amp = "auto"
    """Mixed precision."""

    def __post_init__(self) -> None:
        """Refuse values that no input could make right."""
        check_axes(self.axes)
        check_prediction(self.threshold)
        if not 0 < self.fps <= 1000:
            raise ValueError(f"--fps {self.fps} must be greater than 0 and at most 1000")
        if self.out is not None and self.out.suffix.lower() not in ENCODERS:
            raise ValueError(f"--out {self.out}: the suffix must be .avi or .mp4")


def main() -> int:
    """Load networks, predict frame by frame, write the video."""
    config = parse_flags(Config)
    checkpoints = TASK.checkpoints(config.checkpoint)
    precision = choose_precision(config.device, config.amp)
    shared = Predictor.load(TASK, checkpoints, precision, threshold=config.threshold)
    predictor = NucleiPredictor(shared)
    paths, parts = (
        (in_order(find_images(config.input)), {}) if config.input else sequence_of(shared.card, checkpoints[0])
    )
    out = config.out or default_output(config.input, checkpoints[0])
    total, shape, problems = look(paths, config)
    for problem in problems.values():
        say(f"failed: {problem}")
    good = [path for path in paths if path not in problems]
    if good:
        ranges = shared.ranges()
        frames = enumerate(frames_of(good, config), start=1)
        pictures = (
            captioned(
                side_by_side(frame, predictor, config.style, shape, ranges),
                "    ".join(filter(None, (f"frame {number} of {total}", name, parts.get(path)))),
            )
            for number, (path, name, frame) in frames
        )
        sources = list(config.input) or [good[0].parent]
        with OutputFolder(out.parent).delivery(sources, [out.name]) as temporary:
            count = write_video(temporary / f"video{out.suffix.lower()}", pictures, config.fps)
            (temporary / f"video{out.suffix.lower()}").rename(temporary / out.name)
        say(f"{count} frames to {out}")
    return PARTIAL if problems else 0


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Numbered frames one sequence after another, each by its numbers (t9 before t10); then everything else."""
    frames = list(chain.from_iterable(numbered(paths).values()))
    return [*frames, *(path for path in paths if path not in set(frames))]


def sequence_of(card: ModelCard, checkpoint: Path) -> tuple[list[Path], dict[Path, str]]:
    """All frames of the sequence of a run's first test (else validation) frame, and the part that each was in.

    Raises:
        ValueError: the training data are no longer where they were.
    """
    root = Path(card.data_root)
    parts = {frame_id: part for part, ids in card.split.items() for frame_id in ids}
    wanted = card.split.get("test") or card.split.get("val") or []
    if not card.data_root or not root.is_dir():
        raise ValueError(
            f"the data that {checkpoint} was trained on are not at '{card.data_root}' any more; give INPUT"
        )
    images, labels = (Path(card.config[key]) if card.config.get(key) else None for key in ("images", "labels"))
    found = find_frames(root, images=images, labels=labels, truth=str(card.config.get("truth", "ST")))
    first = next((frame.image for frame in found.frames if frame.id in wanted), None)
    if first is None:
        raise ValueError(f"none of the {len(wanted)} test frames of {checkpoint} is under {root} any more; give INPUT")
    with_mask = {frame.image: parts.get(frame.id, "") for frame in found.frames}
    film = [path for path in (*with_mask, *found.without_mask) if path.parent == first.parent]
    named = {path: f"{part} part" for path, part in with_mask.items() if part}
    return in_order(sorted(film)), named


def default_output(inputs: Sequence[Path], checkpoint: Path) -> Path:
    """Beside the checkpoint without INPUT, else under outputs/."""
    if not inputs:
        return checkpoint.parent / "predictions.avi"
    return Path("outputs") / TASK.name / f"{inputs[0].resolve().stem}.avi"


def frames_of(paths: Sequence[Path], config: Config) -> Iterator[tuple[Path, str, NDArray[np.generic]]]:
    """The frames of all inputs in order, each with its file and its name: folder, file, page of a stack."""
    for path in progress(paths, "video", "file"):
        stack = read_stack(path, config.axes, config.channel)
        name = f"{path.resolve().parent.name}/{path.stem}"
        for page, frame in enumerate(stack.frames):
            yield path, f"{name} page {page}" if stack.has_time else name, frame


def look(paths: Sequence[Path], config: Config) -> tuple[int, tuple[int, int], dict[Path, str]]:
    """How many frames there are, height and width that hold each, and what is wrong with unreadable inputs."""
    total, height, width, problems = 0, 0, 0, {}
    for path in paths:
        try:
            shape = read_stack(path, config.axes, config.channel).frames.shape
            total, height, width = total + shape[0], max(height, shape[1]), max(width, shape[2])
        except (ValueError, OSError) as error:
            problems[path] = str(error)
    return total, (height, width), problems


def side_by_side(
    frame: NDArray[np.generic], predictor: NucleiPredictor, style: str, shape: tuple[int, int], ranges: ValueRanges
) -> Pixels:
    """A frame beside its prediction, each padded to ``shape`` (height, width) and to even sizes, as codecs need."""
    prediction = predictor(scale_frame(frame, ranges.of(frame.dtype)))
    shown = viridis(prediction.mask) if style == "mask" else outlines(frame, prediction.nuclei())
    height, width = (size + size % 2 for size in shape)
    return np.hstack(
        [np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0))) for p in (stretch(frame), shown)]
    )


def write_video(path: Path, pictures: Iterable[Pixels], fps: float) -> int:
    """Encode pictures (H, W, 3) uint8 of one even size as the suffix of ``path`` says; returns how many.

    Raises:
        ValueError: this PyAV lacks the encoder.
    """
    encoder, tag, quality = ENCODERS[path.suffix.lower()]
    if encoder not in av.codecs_available:
        raise ValueError(f"this PyAV has no {encoder} encoder; pip install av from PyPI, or use another --out suffix")
    options = {"movflags": "+faststart"} if path.suffix.lower() == ".mp4" else {}
    count = 0
    with av.open(str(path), "w", options=options) as film:
        rate = Fraction(fps).limit_denominator(1000)
        stream = cast("av.VideoStream", film.add_stream(encoder, rate=rate, options=quality))
        stream.codec_context.codec_tag = tag
        for count, picture in enumerate(pictures, start=1):
            if count == 1:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    return count


if __name__ == "__main__":
    run_command(main)
