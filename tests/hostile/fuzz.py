"""Bytes of small valid files, spoiled at random, through the real commands.

    python tests/hostile/fuzz.py --count 10000 --seed 1

Pictures and rasters go through inference many at once, since a command must finish the others whatever one of them
does; networks, vector files and configurations go through the readers of the commands. When something is wrong with a
batch, its files are tried one by one. Reported are tracebacks, ends of the interpreter, more than ten seconds or two
gigabytes, files of the user that were changed and products that do not open.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # started as a script: imports begin at the repository's root
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import pyogrio  # noqa: E402
import shapely  # noqa: E402
import tyro  # noqa: E402

from tests.hostile.arena import Arena  # noqa: E402
from tests.hostile.cases import Bench, Verdict, infer_apart  # noqa: E402
from tests.hostile.kit import scene, write_geotiff, write_picture  # noqa: E402
from tests.hostile.zoo import Specimen, orientation, raw  # noqa: E402

BATCH = 25
SECONDS = 10.0
KINDS = {"tif": 5, "png": 4, "webp": 2, "jpg": 2, "bmp": 1, "jp2": 1, "pt": 1, "gpkg": 1, "geojson": 1, "yaml": 1}
"""Shares of the kinds of files."""
PICTURES = ("tif", "png", "webp", "jpg", "bmp", "jp2")


@dataclass(frozen=True)
class Config:
    """Spoil bytes and look for faults."""

    count: int = 300
    """Spoiled files."""
    seed: int = 0
    """Of all that is random."""
    keep: Path | None = None
    """Folder for the files at which something was wrong."""


@dataclass(frozen=True)
class Seeds:
    """Small valid files by suffix."""

    files: dict[str, list[bytes]]

    @classmethod
    def make(cls, bench: Bench, folder: Path) -> Seeds:
        """Write them once and keep their bytes."""
        folder.mkdir()
        rgb, mask = scene((24, 32))
        pictures = [write_picture(folder / name, rgb) for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.jp2")]
        pictures.append(write_picture(folder / "p.png", mask))
        pictures.append(write_picture(folder / "e.jpg", rgb, exif=b"Exif\0\0" + orientation(6)))
        rasters = [
            write_geotiff(folder / "plain.tif", rgb),
            write_geotiff(folder / "deflate.tif", rgb, compress="deflate", tiled=True, blockxsize=16, blockysize=16),
            write_geotiff(folder / "lzw.tif", rgb.astype(np.uint16), compress="lzw", predictor=2),
            write_geotiff(folder / "jpeg.tif", rgb, compress="jpeg", photometric="ycbcr"),
            write_geotiff(folder / "float.tif", rgb.astype(np.float32) / 255, nodata=np.nan),
        ]
        layer = folder / "layer.gpkg"
        for path in (layer, folder / "layer.geojson"):
            box = shapely.box(14.9, 44.9, 15.1, 45.3)
            pyogrio.raw.write(
                path, np.array([shapely.to_wkb(box)]), [np.array([1], np.int64)], ["kind"], geometry_type="Polygon",
                crs="EPSG:4326",
            )  # fmt: skip
        config = folder / "config.yaml"
        config.write_text("epochs: 1\nlr: 1e-3\nwidths: [4, 4, 8]\nloss: bce+dice\narch: unet_small\nseed: [\n")
        network = bench.network("footprints")
        files: dict[str, list[bytes]] = {}
        for path in (*pictures, *rasters, layer, folder / "layer.geojson", network, config):
            files.setdefault(path.suffix[1:], []).append(path.read_bytes())
        return cls(files)


def spoil(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Flip, insert, cut out, zero, repeat or splice; one to four times."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, max(1, len(data)))) if rng.random() < 0.5 else int(rng.integers(0, 200))
        place = min(place, max(0, len(data) - 1))
        length = int(rng.choice([1, 1, 2, 4, 8, 64, 1000]))
        way = rng.integers(0, 8)
        if way == 0 and data:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif way == 1:
            data[place:place] = rng.bytes(length)
        elif way == 2:
            del data[place : place + length]
        elif way == 3:
            data[place : place + length] = bytes(min(length, len(data) - place))
        elif way == 4:
            data[place : place + length] = b"\xff" * min(length, len(data) - place)
        elif way == 5:
            del data[place:]
        elif way == 6:
            source = int(rng.integers(0, max(1, len(other))))
            data[place : place + length] = other[source : source + length]
        else:
            value = int(rng.choice([0, 1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1]))
            data[place : place + 4] = value.to_bytes(4, str(rng.choice(["little", "big"])))  # type: ignore[arg-type]
    return bytes(data)


def spoil_entry(content: bytes, rng: np.random.Generator) -> bytes:
    """Spoil what a checkpoint's archive holds, with right checksums, so that the unpickler sees it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as made:
        for info in source.infolist():
            inner = source.read(info)
            made.writestr(info.filename, spoil(inner, rng, inner) if info.filename.endswith("data.pkl") else inner)
    return target.getvalue()


def specimens(seeds: Seeds, count: int, seed: int) -> dict[str, list[Specimen]]:
    """Spoiled files by suffix; the same seed makes the same files."""
    rng = np.random.default_rng(seed)
    names = list(KINDS)
    shares = np.array([KINDS[name] for name in names], float)
    made: dict[str, list[Specimen]] = {name: [] for name in names}
    for number in range(count):
        kind = str(rng.choice(names, p=shares / shares.sum()))
        content, other = (seeds.files[kind][rng.integers(len(seeds.files[kind]))] for _ in range(2))
        inside = kind == "pt" and rng.random() < 0.7
        spoiled = spoil_entry(content, rng) if inside else spoil(content, rng, other)
        made[kind].append(Specimen(f"s{seed}n{number}.{kind}", raw(spoiled)))
    return made


def portions(files: list[Specimen]) -> Iterator[list[Specimen]]:
    """As many as one command gets."""
    yield from (files[start : start + BATCH] for start in range(0, len(files), BATCH))


def read(bench: Bench, batch: Sequence[Specimen]) -> Verdict:
    """Files through the readers of the commands, in one process."""
    with bench.folder() as folder:
        for one in batch:
            one.make(folder / one.name)
        names = [one.name for one in batch]
        verdict = bench.judge(folder, "tests.hostile.readers", *names, limit=SECONDS * (3 if len(batch) > 1 else 1))
        verdict.what = f"readers {names[:3]}"
        return verdict


def read_apart(bench: Bench, batch: Sequence[Specimen]) -> Iterator[Verdict]:
    """Files through the readers; after any fault one by one."""
    verdict = read(bench, batch)
    if verdict.faults and len(batch) > 1:
        yield from (read(bench, [one]) for one in batch)
    yield verdict


def fuzz(bench: Bench, seeds: Seeds, count: int, seed: int) -> Iterator[Verdict]:
    """All that was tried and what was seen."""
    made = specimens(seeds, count, seed)
    for number, batch in enumerate(portions([one for kind in PICTURES for one in made[kind]])):
        yield from infer_apart(bench, "hela_nuclei" if number % 3 == 2 else "footprints", batch, limit=SECONDS)
    for batch in portions([one for kind in made if kind not in PICTURES for one in made[kind]]):
        yield from read_apart(bench, batch)


def main() -> None:
    """Spoil, run, print."""
    config = tyro.cli(Config)
    warnings.simplefilter("ignore")
    arena, root = Arena(), Path(tempfile.mkdtemp(prefix="fuzz-"))
    causes: Counter[str] = Counter()
    tried = 0
    try:
        bench = Bench(arena, root)
        seeds = Seeds.make(bench, root / "seeds")
        if config.keep:
            config.keep.mkdir(parents=True, exist_ok=True)
            for group in specimens(seeds, config.count, config.seed).values():
                for one in group:
                    one.make(config.keep / one.name)
        for verdict in fuzz(bench, seeds, config.count, config.seed):
            tried += 1
            causes.update({fault.split(":")[0] for fault in verdict.faults})
            if verdict.faults:
                print(verdict, flush=True)
    finally:
        arena.close()
        shutil.rmtree(root, ignore_errors=True)
    print(f"{config.count} spoiled files, {tried} commands: {dict(causes) or 'no faults'}")


if __name__ == "__main__":
    main()
