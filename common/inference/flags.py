"""Flags of the commands that predict, and the networks that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from common.command.config import Amp, Device, check_prediction, check_range
from common.images.write import ProbabilityType
from common.inference.predictor import Cut, Predictor
from common.inference.products import Extra, Products, Refine, free_bytes, provenance
from common.inference.windows import check_overlap
from common.networks.precision import choose_precision
from common.networks.task import Task

SMALLEST_TILE = 32
"""Pixels: smaller tiles would take days."""


@dataclass(frozen=True)
class PredictConfig:
    """Flags of every command that predicts."""

    # Input
    input: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of them (not recursive)."""
    scale: float | None = None
    """Read images at this multiple of their size; default: the scale the network was trained at."""
    input_range: tuple[float, float] | None = None
    """Values that mean black and white; default: those of the training, or the number type's."""
    # Network
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Checkpoint(s), or shipped; several are averaged. Default: the newest run's best, else the weights that ship."""
    threshold: float | None = None
    """Two classes: foreground where P is at least this; default: the checkpoint's."""
    tta: bool = False
    """Average over flips: four times slower, a little better."""
    tile_size: int = 0
    """Side of the tiles in which larger images are predicted, pixels (0 = what takes the least time)."""
    overlap: float | None = None
    """What tiles share: a share of their side (0.25) or pixels (64); default: twice as far as the network sees."""
    # Output
    output_dir: Path | None = None
    """Where results go; default outputs/<task>."""
    # Machine
    device: Device = "auto"
    """Where to compute."""
    amp: Amp = "auto"
    """Mixed precision."""
    workers: int = 0
    """Compute in so many processes of this machine, which share its cores and GPUs; 0 = in this one."""
    scheduler: str = ""
    """Compute on the workers of a Dask scheduler: tcp://HOST:PORT, tls://HOST:PORT, or the file that it wrote."""

    def __post_init__(self) -> None:
        """Refuse values that no input could make right.

        Raises:
            ValueError: names the flag and its value.
        """
        if self.tile_size != 0 and self.tile_size < SMALLEST_TILE:
            raise ValueError(
                f"--tile-size {self.tile_size} must be at least {SMALLEST_TILE} pixels, or 0 for what suits the network"
            )
        if self.overlap is not None:
            check_overlap(self.overlap, self.tile_size)
        check_prediction(self.threshold, self.scale)
        check_range(self.input_range)
        self._check_workers()
        free_bytes(self.output_dir or Path())

    def _check_workers(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers} must be 0 or more")
        if self.workers and self.scheduler:
            raise ValueError("--workers starts workers and --scheduler has some: give one of them")
        if self.spread and find_spec("distributed") is None:
            flag = "--scheduler" if self.scheduler else "--workers"
            raise ValueError(f"{flag} needs Dask, which is not installed: pip install -r requirements-cluster.txt")

    @property
    def spread(self) -> bool:
        """Whether other processes compute."""
        return bool(self.workers or self.scheduler)


@dataclass(frozen=True)
class InferConfig(PredictConfig):
    """Flags that every task's inference of images and rasters understands."""

    # Input
    gsd: float = 0.0
    """Metres per pixel of pictures without georeference (0 = unknown); networks read at what they were trained at."""
    mosaic: bool = False
    """Predict georeferenced sheets as one raster, without seams at their edges; results are per sheet, polygons one."""
    # Output
    vector: Literal["none", "gpkg", "shp", "geojson"] = "none"
    """Polygons too: GeoPackage, shapefile or GeoJSON (in WGS 84)."""
    min_area: float = 0.0
    """Leave out polygons smaller than this, m2 (pixels, of a picture without georeference)."""
    simplify: float = 0.0
    """Simplify outlines by this tolerance in metres (or pixels); neighbors keep common edges."""
    cog: bool = False
    """Write GeoTIFFs as Cloud Optimized GeoTIFFs."""
    prob: bool = True
    """Write probabilities too; they take most of the disk."""
    prob_type: ProbabilityType = "float32"
    """Their numbers; whole ones take a half or a quarter of the disk, with their factor in the file (``scale``)."""

    def __post_init__(self) -> None:
        """Refuse values that no input could make right; see `PredictConfig`."""
        super().__post_init__()
        self.products({})

    def products(
        self, tags: Mapping[str, str], *, refine: Refine | None = None, extra: Extra | None = None
    ) -> Products:
        """What these flags ask for.

        Args:
            tags: provenance.
            refine: a task's own treatment of polygons.
            extra: a task's own product.
        """
        asked = (self.vector, self.min_area, self.simplify, self.cog, self.prob, self.prob_type)
        return Products(*asked, refine=refine, extra=extra, tags=tags)


def load_predictor(config: PredictConfig, task: Task) -> tuple[Predictor, dict[str, str]]:
    """The network(s) that the flags name, or the newest run's, and the provenance of what they predict.

    Args:
        config: the command's flags.
        task: whose networks they are.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, or the flags do not fit the networks.
    """
    checkpoints = task.checkpoints(config.checkpoint)
    predictor = read_predictor(config, task, checkpoints)
    return predictor, provenance(checkpoints, predictor.threshold if predictor.binary else None)


def read_predictor(config: PredictConfig, task: Task, checkpoints: Sequence[Path]) -> Predictor:
    """The network(s) of some files, as the flags want them; see `load_predictor`."""
    cut = Cut(config.tile_size, config.overlap, config.tta)
    precision = choose_precision(config.device, config.amp)
    return Predictor.load(task, checkpoints, precision, cut, scale=config.scale, threshold=config.threshold)
