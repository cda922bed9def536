"""Units of work: whole inputs, or ranges of a large raster's rows, left as parts on the shared disk."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.command.cli import say
from common.files import Workplace, atomic_path, read_json, remove, write_text
from common.inference.cluster.worker import (
    LOOK,
    Meter,
    Order,
    Outcome,
    Part,
    PreparingJob,
    Survey,
    bench,
    reporting,
)
from common.inference.job import Job, busy
from common.inference.spool import Appender, Spool, digest, workplace
from common.inference.stream import GOING_ON, kept_layers, open_spool, predict_bands

WHOLE = "whole.json"
"""File in a finished part: its key and hash."""
BANDS = 8
"""A range of a raster's rows has as many bands, or more."""
PATIENCE = 600.0
"""Seconds until a part must be free that a worker given up still works on."""


def do_files(blob: bytes, inputs: Sequence[tuple[Path, str]], parts: Sequence[Part] = ()) -> list[Outcome]:
    """Predict inputs and write their products.

    Args:
        blob: the pickled order.
        inputs: paths and stems.
        parts: of the only input, finished before, in order.
    """
    outcomes = []
    for path, stem in inputs:
        outcome = Outcome(path)
        outcomes.append(outcome)
        with reporting(outcome):
            order, _, job = bench(blob)
            if parts:
                assert isinstance(job, Job)
                join(job, path, stem, parts)
            job.run(path, stem, Meter(order, silent=bool(parts)))
        if parts:
            outcome.lines = [line for line in outcome.lines if GOING_ON not in line]
    return outcomes


def join(job: Job, path: Path, stem: str, parts: Sequence[Part]) -> None:
    """Put finished parts together; the job goes on where they end, or where one is damaged."""
    origin = job.origin(path)
    place = workplace(job.outputs.path, stem, origin)
    if not place.claim():
        raise ValueError(busy(place, origin))
    try:
        predictor, size, value_range = job.reading(path)
        spool = open_spool(path, predictor, place.path, job.products, size, value_range)
        for part in parts:
            folder = place.path / part.name
            if part.first == spool.rows and digest(folder) == part.sha256:
                spool.extend(folder, part.last - part.first)
            remove(folder)
    finally:
        place.release()


def range_of(name: str) -> tuple[int, int]:
    """First row and end of a part, finished or not, by the name of its folder."""
    first, last = name.removesuffix(Workplace.SUFFIX).split("-")[1:]
    return int(first), int(last)


def rows_of(folder: Path) -> int:
    """Finished rows of a part that was begun."""
    try:
        return int(read_json(folder / Workplace.KEPT)["rows"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def whole(folder: Path, key: str) -> str:
    """The hash of a finished part; nothing if there is none, or if it is damaged or of other rows."""
    try:
        said = read_json(folder / WHOLE)
        return str(said["sha256"]) if (said["key"], said["sha256"]) == (key, digest(folder)) else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def survey(blob: bytes, path: Path, stem: str, pieces: int, workers: int) -> list[Outcome]:
    """See how far a raster is and divide the rest; what is of no use any more is removed.

    Args:
        blob: the pickled order.
        path: the raster.
        stem: of its results.
        pieces: ranges of rows wanted.
        workers: of the cluster.
    """
    outcome = Outcome(path)
    with reporting(outcome):
        _, _, job = bench(blob)
        assert isinstance(job, Job)
        place = workplace(job.outputs.path, stem, job.origin(path)).path
        predictor, size, value_range = job.reading(path)
        spool = open_spool(path, predictor, place, job.products, size, value_range)
        spool.keep()
        edges = predictor.band_edges(size)
        parts, begun = found_parts(place, spool, edges)
        known = sorted([(0, spool.rows), *(part[:2] for part in parts), *begun, (size[0], size[0])])
        gaps = [(before[1], after[0]) for before, after in pairwise(known)]
        count = pieces_of(len(edges) - 1, pieces, workers)
        todo = sorted([*begun, *(piece for gap in gaps for piece in divide(edges, gap, count))])
        rows = size[0] - sum(last - first for first, last in todo)
        if finished := rows + sum(rows_of(place / f"{Part(*each, '').name}{Workplace.SUFFIX}") for each in begun):
            say(f"{path}: {finished} of {size[0]} {GOING_ON}")
        outcome.survey = Survey(spool.key, rows, size[1], parts, todo)
    return [outcome]


def found_parts(place: Path, spool: Spool, edges: Sequence[int]) -> tuple[list[Part], list[tuple[int, int]]]:
    """Finished parts behind a spool's rows, and ranges that were begun; whatever else there is of parts is removed."""
    parts: list[Part] = []
    begun: list[tuple[int, int]] = []
    end = spool.rows
    for folder in sorted(place.glob("rows-*-*"), key=lambda path: range_of(path.name)):
        first, last = range_of(folder.name)
        if end <= first < last and first in edges and last in edges:
            if folder.name.endswith(Workplace.SUFFIX):
                begun.append((first, last))
                end = last
                continue
            if sha256 := whole(folder, spool.key):
                parts.append(Part(first, last, sha256))
                end = last
                continue
        remove(folder)
    return parts, begun


def pieces_of(bands: int, wanted: int, workers: int) -> int:
    """Into how many ranges a raster is divided: at each cut a row of tiles is predicted twice, so into few."""
    most = max(bands // BANDS, min(workers, bands // 2), 1)
    count = min(wanted, most)
    return count // workers * workers if count > workers else count


def divide(edges: Sequence[int], gap: tuple[int, int], pieces: int) -> list[tuple[int, int]]:
    """Divide rows between two ends of bands into ranges of about as many bands; ``pieces`` = of the whole raster."""
    inside = [edge for edge in edges if gap[0] <= edge <= gap[1]]
    bands = len(inside) - 1
    count = min(bands, max(1, round(bands * pieces / (len(edges) - 1)))) if bands > 0 else 0
    cuts = [inside[round(index * bands / count)] for index in range(count + 1)] if count else []
    return list(pairwise(cuts))


def do_rows(blob: bytes, path: Path, stem: str, rows: tuple[int, int], key: str) -> list[Outcome]:
    """Predict a range of a raster's rows into a part of its own, unless that is there and whole.

    Args:
        blob: the pickled order.
        path: the raster.
        stem: of its results.
        rows: first row and end.
        key: of the raster's rows.
    """
    outcome = Outcome(path)
    with reporting(outcome):
        order, _, job = bench(blob)
        assert isinstance(job, Job)
        done = workplace(job.outputs.path, stem, job.origin(path)).path / Part(*rows, "").name
        sha256 = whole(done, key) or _predict_part(order, job, path, done, rows, key)
        outcome.part = Part(*rows, sha256)
    return [outcome]


def _predict_part(order: Order, job: Job, path: Path, done: Path, rows: tuple[int, int], key: str) -> str:
    """Predict rows under a temporary name, which a killed worker's successor goes on with; then rename."""
    meter, place = Meter(order), Workplace(done.with_name(done.name + Workplace.SUFFIX))
    until = time.monotonic() + PATIENCE
    while not place.claim():  # a worker that was given up
        if time.monotonic() > until:
            raise ValueError(busy(place, path))
        meter(0)
        time.sleep(LOOK)
    try:
        predictor, (height, width), value_range = job.reading(path)
        edges = [edge - rows[0] for edge in predictor.band_edges((height, width))]
        size, layers = (rows[1] - rows[0], width), kept_layers(predictor, job.products)
        part = Spool(place.path, size, layers, f"{key} {rows}", edges)
        meter(part.rows * width)
        start = rows[0] + part.rows
        predicted = predict_bands(path, predictor, layers, (start, rows[1]), input_range=value_range)
        with Appender(part) as append, closing(predicted) as bands:
            for _, band in bands:
                append(band)
                meter(band["mask"].size)
        sha256 = digest(place.path)
        write_text(place.path / WHOLE, json.dumps({"key": key, "sha256": sha256}))
    finally:
        place.release()
    place.path.rename(done)
    return sha256


def do_ahead(blob: bytes, path: Path, name: str) -> list[Outcome]:
    """Leave what takes long in an input as a file in the command's workplace.

    Args:
        blob: the pickled order.
        path: the input.
        name: of the file.
    """
    outcome = Outcome(path)
    with reporting(outcome):
        order, _, job = bench(blob)
        assert isinstance(job, PreparingJob)
        prepared = job.prepare(path, Meter(order))
        with atomic_path(order.place / name) as temporary:
            np.savez(temporary, allow_pickle=False, **prepared)
    return [outcome]
