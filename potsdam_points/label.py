"""Click points on pictures of any size, and watch a network learn from them: ``python potsdam_points/label.py IMAGES``.

A page opens in the browser: number keys choose the class, a click labels a pixel and is saved at once in the table that
``train.py --points-file`` reads. Everything stays on this machine.
"""

from __future__ import annotations

import sys
import time
import webbrowser
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
from common.networks.checkpoint import RUNS, ModelCard
from common.networks.precision import choose_precision
from common.networks.unet_small import SMALL
from potsdam_points.data import patch_id
from potsdam_points.labeling.judging import Judging, Sample, classes_of
from potsdam_points.labeling.learner import Learner
from potsdam_points.labeling.server import PageServer
from potsdam_points.labeling.session import Session
from potsdam_points.labeling.store import PointStore
from potsdam_points.labeling.tiles import TileSource
from potsdam_points.labels import CLASSES, check_classes, palette_of
from potsdam_points.samples import NORMALIZATION
from potsdam_points.task import TASK


@dataclass(frozen=True)
class Config:
    """Label pixels of pictures by clicking, in the browser, while a network learns from them.

    Examples:
        python potsdam_points/label.py pictures/ --points-file points.csv
        python potsdam_points/label.py sheet.tif --classes water meadow road
        python potsdam_points/label.py sheet.tif --sample outputs/areas/sample.csv
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, GeoTIFFs, COGs of any size, or folders of them."""
    points_file: Path = Path("points.csv")
    """Table of points; made at the first click, gone on with if it is there. Several people use several files."""
    checkpoint: Path | None = None
    """Network to go on with; default: a new one."""
    sample: Path | None = None
    """Judge this sample of permeability/estimate.py (sample.csv) instead: its points one after the other."""
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
        check_classes(self.classes)
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port {self.port} must lie in 0...65535")


def main() -> int:
    """Open pictures, points and network, then serve the page until Ctrl-C."""
    config = parse_flags(Config)
    with alone(config.sample or config.points_file):
        serve(config, open_judging(config) if config.sample else open_session(config))
    return 0


def serve(config: Config, session: Session | Judging) -> None:
    """Answer the page until Ctrl-C."""
    server = PageServer(session, config.port)
    if isinstance(session, Session):
        say(f"points: {session.store.path}, {sum(session.store.counts())} so far; network: {session.learner.folder}")
    else:
        say(f"sample: {session.store.path}, {session.store.next} of {len(session.store.points)} points are judged")
    print(f"open {server.url}", flush=True)
    if config.browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say(f"stopped; {sum(session.store.counts())} points in {session.store.path}")
    finally:
        server.server_close()
        session.close()


def open_session(config: Config) -> Session:
    """Everything that the page works on.

    Raises:
        FileNotFoundError, ValueError: a picture, the table or the checkpoint cannot be used.
    """
    sources = open_pictures(config)
    store = PointStore(config.points_file, config.classes, {n: (s.height, s.width) for n, s in sources.items()})
    network, card = open_network(config)
    folder = config.output_dir or RUNS / TASK.name / f"label-{time.strftime('%Y%m%d-%H%M%S')}"
    learner = Learner(network, card, store, sources, folder, choose_precision(), trained=config.checkpoint is not None)
    return Session(sources, store, learner, [card.palette[i] for i in range(len(config.classes))])


def open_judging(config: Config) -> Judging:
    """A sample and its pictures.

    Raises:
        FileNotFoundError, ValueError: a picture or the sample cannot be used.
    """
    assert config.sample is not None
    classes = classes_of(config.sample)
    sources = open_pictures(config)
    sample = Sample(config.sample, classes, sources)
    return Judging(sources, sample, list(palette_of(classes).values()))


def open_pictures(config: Config) -> dict[str, TileSource]:
    """The pictures by id.

    Raises:
        FileNotFoundError, ValueError: one cannot be opened, or two have one id.
    """
    sources: dict[str, TileSource] = {}
    for path in find_images(config.images):
        name = patch_id(path.stem)
        if name in sources:
            raise ValueError(
                f"{path} and {sources[name].path} have one name, {name}; the table could not tell them apart"
            )
        sources[name] = TileSource(path, config.cache_dir, config.input_range)
    return sources


def open_network(config: Config) -> tuple[nn.Module, ModelCard]:
    """The network to go on with, or one that begins with the weights that ship.

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
    arch_args: dict[str, Any] = {"outputs": len(config.classes), **SMALL}
    names, palette = list(config.classes), palette_of(config.classes)
    card = TASK.card("unet_small", arch_args, classes=names, palette=palette, normalization=NORMALIZATION)
    network = TASK.build(card.arch, **arch_args)
    TASK.initialize(network, "shipped")
    return network, card


if __name__ == "__main__":
    run_command(main)
