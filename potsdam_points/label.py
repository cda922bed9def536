"""Click points on pictures of any size, and watch a network learn from them: ``python potsdam_points/label.py IMAGES``.

A page opens in the browser: number keys choose the class, a click labels a pixel and is saved at once in the table that
``train.py --points-file`` reads. Everything stays on this machine.
"""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.command.help import help_first

    help_first(__file__)

import torch
import tyro
from torch import nn

from common.command.cli import run_command, say
from common.command.config import parse_flags
from common.data.inputs import find_images
from common.files import alone
from common.labels import Color
from common.networks.checkpoint import RUNS, ModelCard
from common.networks.precision import choose_precision
from potsdam_points.data import patch_id
from potsdam_points.labeling.learner import Learner
from potsdam_points.labeling.server import PageServer
from potsdam_points.labeling.session import Session
from potsdam_points.labeling.store import PointStore
from potsdam_points.labeling.tiles import TileSource
from potsdam_points.labels import CLASSES, PALETTE
from potsdam_points.task import TASK

WIDTHS = (32, 64, 128, 192)
NORMALIZATION = {"mean": [0.45, 0.45, 0.42], "std": [0.22, 0.21, 0.2]}
COLORS: list[Color] = [
    (230, 60, 40),
    (60, 120, 230),
    (250, 200, 60),
    (40, 160, 90),
    (160, 80, 200),
    (60, 200, 210),
    (240, 130, 40),
    (150, 110, 80),
    (240, 120, 180),
    (120, 120, 120),
]


@dataclass(frozen=True)
class Config:
    """Label pixels of pictures by clicking, in the browser, while a network learns from them.

    Examples:
        python potsdam_points/label.py pictures/ --points-file points.csv
        python potsdam_points/label.py sheet.tif --classes water meadow road
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, GeoTIFFs, COGs of any size, or folders of them."""
    points_file: Path = Path("points.csv")
    """Table of points; made at the first click, gone on with if it is there. Several people use several files."""
    checkpoint: Path | None = None
    """Network to go on with; default: a new one."""
    classes: tuple[str, ...] = tuple(CLASSES)
    """Names of the classes; number keys choose among the first nine."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: those of the number type."""
    port: int = 0
    """Port on this machine; 0 = any free one."""
    browser: bool = True
    """Open the page at once."""
    cache_dir: Path = Path("outputs/potsdam_points/label")
    """Where small copies of large pictures without overviews are kept."""
    output_dir: Path | None = None
    """Where the network that learned is kept; default runs/potsdam_points/label-<time>."""

    def __post_init__(self) -> None:
        """Validate fields against each other."""
        if not 2 <= len(set(self.classes)) == len(self.classes) <= 100:
            raise ValueError(f"--classes {' '.join(self.classes)}: two or more different names are needed")
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port {self.port} must lie in 0...65535")


def main() -> int:
    """Open pictures, points and network, then serve the page until Ctrl-C."""
    config = parse_flags(Config)
    with alone(config.points_file):
        return serve(config)


def serve(config: Config) -> int:
    """Open pictures, points and network, and serve the page."""
    session = open_session(config)
    server = PageServer(session, config.port)
    say(f"points: {config.points_file}, {sum(session.store.counts())} so far; network: {session.learner.folder}")
    print(f"open {server.url}", flush=True)
    if config.browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say(f"stopped; {sum(session.store.counts())} points in {config.points_file}")
    finally:
        server.server_close()
        session.close()
    return 0


def open_session(config: Config) -> Session:
    """Everything that the page works on.

    Raises:
        FileNotFoundError, ValueError: a picture, the table or the checkpoint cannot be used.
    """
    sources: dict[str, TileSource] = {}
    for path in find_images(config.images):
        name = patch_id(path.stem)
        if name in sources:
            raise ValueError(
                f"{path} and {sources[name].path} have one name, {name}; the table could not tell them apart"
            )
        sources[name] = TileSource(path, config.cache_dir, config.input_range)
    store = PointStore(config.points_file, config.classes, {n: (s.height, s.width) for n, s in sources.items()})
    network, card = open_network(config)
    folder = config.output_dir or RUNS / TASK.name / f"label-{time.strftime('%Y%m%d-%H%M%S')}"
    learner = Learner(network, card, store, sources, folder, choose_precision(), trained=config.checkpoint is not None)
    return Session(sources, store, learner, [card.palette[i] for i in range(len(config.classes))])


def open_network(config: Config) -> tuple[nn.Module, ModelCard]:
    """The network to go on with, or a new one.

    Raises:
        ValueError: the checkpoint has other classes.
    """
    if config.checkpoint is not None:
        network, card = TASK.load(config.checkpoint)
        if card.classes != list(config.classes):
            raise ValueError(
                f"--checkpoint {config.checkpoint} knows {', '.join(card.classes)}, --classes names "
                f"{', '.join(config.classes)}; they must be the same"
            )
        return network, card
    torch.manual_seed(0)
    arch_args: dict[str, Any] = {"outputs": len(config.classes), "widths": list(WIDTHS), "stem": 2}
    palette = dict(enumerate(colors(config.classes)))
    card = TASK.card(
        "unet_small", arch_args, classes=list(config.classes), palette=palette, normalization=NORMALIZATION
    )
    return TASK.build(card.arch, **arch_args), card


def colors(classes: Sequence[str]) -> list[Color]:
    """A color for each class: Potsdam's own, or distinct ones."""
    if list(classes) == CLASSES:
        return [PALETTE[index] for index in range(len(CLASSES))]
    return [COLORS[index % len(COLORS)] for index in range(len(classes))]


if __name__ == "__main__":
    run_command(main)
