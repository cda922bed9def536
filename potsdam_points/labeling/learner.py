"""A network that learns from the points while they are clicked, and says what it sees.

Training takes windows around the labeled points straight from the pictures, so their size does not matter. It runs in
one thread of its own; predictions come from the last finished weights, which are a checkpoint for ``infer.py`` as well.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.labels import IGNORE
from common.losses import partial_cross_entropy
from common.networks.checkpoint import ModelCard, save_checkpoint
from common.networks.normalize import normalize
from common.networks.precision import Precision
from potsdam_points.labeling.store import PointStore
from potsdam_points.labeling.tiles import TILE, TileSource

CROP, BATCH = 256, 8
CONTEXT = 64
"""Pixels around a tile that the network sees too."""
FINEST = 2
"""Levels up to this one show predictions: coarser ones would take the whole picture through the network."""


class Learner:
    """The network, its training and its predictions.

    Args:
        network: gives one logit per class.
        card: what it is; goes into the checkpoint.
        store: the points.
        sources: the pictures by id.
        folder: where the checkpoint goes.
        precision: device and mixed precision.
        trained: whether the network has learned something already, so that it can be shown.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        store: PointStore,
        sources: Mapping[str, TileSource],
        folder: Path,
        precision: Precision,
        *,
        trained: bool = False,
    ) -> None:
        self.card, self.store, self.sources, self.folder, self.precision = card, store, sources, folder, precision
        self.version = 1 if trained else 0
        """Counts trainings; 0 = there is nothing to show yet."""
        self.message, self.progress, self.busy = "", 0.0, False
        self._network = network.to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shown = copy.deepcopy(network).eval()
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        self._generator = np.random.default_rng(0)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def learn(self, seconds: float) -> bool:
        """Train in the background for some seconds; False if a training is under way already."""
        with self._lock:
            if self.busy:
                return False
            self.busy, self.progress, self.message = True, 0.0, "learning"
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="learn")
        self._thread.start()
        return True

    def close(self) -> None:
        """End a training that is under way, after its present step."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, seconds: float) -> None:
        try:
            loss = self.train(seconds)
            self.message = f"learned from {sum(self.store.counts())} points, loss {loss:.3f}"
        except Exception as error:  # the page shows it; the server goes on
            self.message = f"learning failed: {' '.join(str(error).split())}"
        finally:
            self.busy = False

    def train(self, seconds: float, steps: int | None = None) -> float:
        """Train, then show and save the new weights; returns the mean loss.

        Args:
            seconds: to take.
            steps: to do, whatever time they take.

        Raises:
            ValueError: fewer than two classes have points.
        """
        if np.count_nonzero(self.store.counts()) < 2:
            raise ValueError("points of at least two classes are needed; click some more")
        points = {name: np.array([(p.y, p.x, p.label) for p in self.store.of(name).values()]) for name in self.sources}
        points = {name: rows for name, rows in points.items() if len(rows)}
        started, losses = time.monotonic(), [0.0]
        self._network.train()
        while not self._stop.is_set() and (len(losses) <= steps if steps else time.monotonic() - started < seconds):
            images, target = self._batch(points)
            with self.precision.autocast():
                logits = self._network(normalize(images, self.card.normalization))
            loss = partial_cross_entropy(logits.float(), target, gamma=0.0)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self._network.parameters(), 5.0)
            self._optimizer.step()
            losses.append(float(loss.detach()))
            self.progress = min(1.0, (time.monotonic() - started) / seconds) if seconds else 0.0
        shown = copy.deepcopy(self._network).eval()
        self._shown, self.version, self.progress = shown, self.version + 1, 1.0
        save_checkpoint(self.folder / "best_iou.pt", self.card, shown.state_dict())
        return float(np.mean(losses[1:][-10:]))

    def _batch(self, points: Mapping[str, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """Windows around points drawn evenly over the classes, with all points in them, flipped and turned."""
        table = [(name, *row) for name, rows in points.items() for row in rows.tolist()]
        labels = np.array([row[3] for row in table])
        kinds = np.unique(labels)
        images = np.zeros((BATCH, 3, CROP, CROP), np.uint8)
        target = np.full((BATCH, CROP, CROP), IGNORE, np.int64)
        for i in range(BATCH):
            name, row, col, _ = table[self._generator.choice(np.flatnonzero(labels == self._generator.choice(kinds)))]
            source = self.sources[name]
            shift = self._generator.integers(CROP // 8, CROP - CROP // 8, 2)
            top = int(np.clip(row - shift[0], 0, max(0, source.height - CROP)))
            left = int(np.clip(col - shift[1], 0, max(0, source.width - CROP)))
            image = source.read(top, left, CROP)
            images[i, :, : image.shape[1], : image.shape[2]] = image
            here = points[name] - (top, left, 0)
            here = here[((here[:, :2] >= 0) & (here[:, :2] < CROP)).all(axis=1)]
            target[i, here[:, 0], here[:, 1]] = here[:, 2]
        turns, flip = int(self._generator.integers(4)), bool(self._generator.integers(2))
        light = self._generator.uniform(0.85, 1.15, (BATCH, 3, 1, 1)).astype(np.float32)
        unit = torch.from_numpy(np.clip(images / np.float32(255) * light, 0, 1))
        both = [torch.rot90(one, turns, (-2, -1)) for one in (unit, torch.from_numpy(target))]
        both = [one.flip(-1) if flip else one for one in both]
        moved = both[0].to(self.precision.device, memory_format=torch.channels_last)
        return moved, both[1].to(self.precision.device)

    @torch.inference_mode()
    def probabilities(self, image: str, row: int, col: int, size: int) -> NDArray[np.float64] | None:
        """(K, h, w) of a window, cut off at the picture's edge; None if nothing was learned yet."""
        network, source = self._shown, self.sources[image]
        if not self.version or row >= source.height or col >= source.width:
            return None
        top, left = max(0, row - CONTEXT), max(0, col - CONTEXT)
        pixels = source.read(top, left, size + CONTEXT + max(row - top, col - left))
        unit = torch.from_numpy(pixels[None] / np.float32(255))
        unit = unit.to(self.precision.device, memory_format=torch.channels_last)
        with self.precision.autocast():
            logits = network(normalize(unit, self.card.normalization)).float()
        whole = logits.softmax(1)[0].double().cpu().numpy()
        return np.asarray(whole[:, row - top : row - top + size, col - left : col - left + size])

    def tile(self, image: str, level: int, x: int, y: int) -> NDArray[np.float64] | None:
        """Probabilities (K, h, w) of a tile; None where there are none: outside, too coarse, nothing learned yet."""
        if not 0 <= level <= FINEST or min(x, y) < 0:
            return None
        size = TILE << level
        found = self.probabilities(image, y * size, x * size, size)
        return None if found is None else found[:, :: 1 << level, :: 1 << level]
