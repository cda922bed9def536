"""Cases of the commands besides inference: odd checkpoints, text files, data sets, folders, flags."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.cases import Bench, Verdict
from tests.hostile.contract import naming_faults
from tests.hostile.kit import COMMON, TRAINING, scene, write_geotiff, write_picture, write_training
from tests.hostile.zoo import BAD, Specimen

IMAGES = {
    "rooftops": "images/images", "footprints": "train/images", "hela_nuclei": "01", "potsdam_points": "Images",
    "permeability": "INSUMOS/ORTOFOTOS",
}  # fmt: skip
LABELS = {
    "rooftops": "label/label", "footprints": "train/labels", "hela_nuclei": "01_ST/SEG", "potsdam_points": "Labels",
    "permeability": "DATA/OUTPUT/MASCARAS/train",
}  # fmt: skip


def refused(verdict: Verdict, specimen: Specimen, *codes: int) -> Verdict:
    """Add the faults of a command that could not start, where its only odd file is bad."""
    outcome = verdict.outcome
    verdict.what += f" {specimen.name!r}"
    if verdict.what.startswith("footprints.train 'network_"):  # only names and shapes matter there
        return verdict
    if outcome.killed:
        return verdict
    if specimen.expect == BAD and outcome.code not in codes:
        verdict.faults.append(f"exit code {outcome.code} with a bad file")
    if outcome.code in (1, 2):
        verdict.faults += naming_faults(outcome, [specimen.name])
    return verdict


def with_checkpoint(bench: Bench, command: str, specimen: Specimen) -> Verdict:
    """A command that reads an odd checkpoint."""
    with bench.folder() as folder:
        file = folder / specimen.name
        specimen.make(file)
        image = write_picture(folder / "image.png", scene()[0])
        data = (
            write_training("footprints", folder / "data", 6) if command.split(".")[1] in ("train", "evaluate") else ""
        )
        flags: dict[str, tuple[object, ...]] = {
            "common.checkpoint": (file,),
            "footprints.infer": (image, "--checkpoint", file, "--output-dir", folder / "out"),
            "footprints.evaluate": ("--checkpoint", file, "--data-root", data, "--split", "all"),
            "footprints.train": (
                "--data-root", data, *TRAINING["footprints"], *COMMON, "--output-dir", folder / "run",
                "--weights", file,
            ),
            "rooftops.export": ("--checkpoint", file, "--out", folder / "model.onnx"),
            "hela_nuclei.make_video": (image, "--checkpoint", file, "--out", folder / "video.avi"),
            "hela_nuclei.infer": (image, "--checkpoint", file, "--output-dir", folder / "out"),
        }  # fmt: skip
        return refused(bench.judge(folder, command, *flags[command]), specimen, 2)


def with_text(bench: Bench, command: str, flag: str, specimen: Specimen) -> Verdict:
    """A training or an evaluation that reads an odd text file: it must not start, and leave nothing."""
    task, action = command.split(".")
    with bench.folder() as folder:
        file = folder / specimen.name
        specimen.make(file)
        data = write_training(task, folder / "data", 6)
        if action == "evaluate":
            flags: tuple[object, ...] = ("--checkpoint", bench.network(task), "--data-root", data, "--split", "all")
        else:
            own = [] if flag == "--config" else [*TRAINING[task], *COMMON]
            flags = ("--data-root", data, "--output-dir", folder / "run", *own)
        verdict = refused(bench.judge(folder, command, flag, file, *flags), specimen, 2)
        if verdict.outcome.code == 2 and (folder / "run").exists():
            verdict.faults.append("left over: the run folder of a training that did not start")
        return verdict


def with_vector(bench: Bench, command: str, specimen: Specimen) -> Verdict:
    """Polygons from an odd vector file, onto a small raster near 15 E 45 N."""
    with bench.folder() as folder:
        file = folder / specimen.name
        specimen.make(file)
        images = write_geotiff(folder / "src" / "images" / "one.tif", scene((200, 200))[0]).parent
        flags: dict[str, tuple[object, ...]] = {
            "permeability.make_masks": (file, "--ortho", images, "--out", folder / "out", "--burn", "1"),
            "footprints.crop": (images.parent, folder / "out", "--size", "64", "--labels", file),
        }
        return refused(bench.judge(folder, command, *flags[command]), specimen, 2)


def add_pair(task: str, folder: Path, specimen: Specimen, number: int, *, spoil: str) -> None:
    """Put an odd image beside a good label into a data set, or the other way round."""
    suffix = Path(specimen.name).suffix
    name = {"potsdam_points": f"Image_{number}", "hela_nuclei": f"t{number:03}"}.get(task, f"odd{number}")
    partner = {"potsdam_points": f"Label_{number}", "hela_nuclei": f"man_seg{number:03}", "rooftops": f"{name}_label"}
    image, mask = scene(seed=number)
    place = {"permeability": folder}.get(task)
    label = folder / LABELS[task] / f"{partner.get(task, name)}{'.tif' if spoil == 'image' else suffix}"
    odd = folder / IMAGES[task] / f"{name}{suffix}"
    if spoil == "image":
        specimen.make(odd)
        write_geotiff(label, mask)
    else:
        specimen.make(label)
        write_geotiff(odd.with_suffix(".tif"), image)
    assert place is None or place.is_dir()


def with_data(bench: Bench, command: str, specimens: Sequence[Specimen], *flags: object, spoil: str) -> Verdict:
    """A training or an evaluation on a data set with odd files among good ones."""
    task, action = command.split(".")
    with bench.folder() as folder:
        data = write_training(task, folder / "data", 6)
        for number, specimen in enumerate(specimens):
            add_pair(task, data, specimen, 100 + number, spoil=spoil)
        run = folder / "run"
        own = (
            ("--checkpoint", bench.network(task), "--split", "all")
            if action == "evaluate"
            else (*TRAINING[task], *COMMON, "--output-dir", run)
        )
        verdict = bench.judge(folder, command, "--data-root", data, *own, *flags, limit=120)
        verdict.what += f" {spoil} {' '.join(repr(s.name) for s in specimens[:3])}"
        if action == "evaluate" and verdict.outcome.code in (0, 1):
            verdict.faults += json_faults(verdict.outcome.out)
        return verdict


def json_faults(out: str) -> list[str]:
    """The last line of an evaluation is one JSON object without NaN."""

    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        scores = json.loads(out.strip().splitlines()[-1], parse_constant=refuse)
    except (ValueError, IndexError) as error:
        return [f"the last line is no JSON: {error}"]
    return [] if isinstance(scores, dict) and "miou" in scores else ["the last line holds no scores"]


def of_folder(bench: Bench, command: str, specimens: Sequence[Specimen]) -> Verdict:
    """A command that reads a folder of rasters, odd ones among good ones."""
    with bench.folder() as folder:
        images = write_geotiff(folder / "src" / "images" / "good.tif", scene((200, 200))[0]).parent
        labels = write_geotiff(folder / "src" / "labels" / "good.tif", scene((200, 200))[1]).parent
        for number, specimen in enumerate(specimens):
            suffix = Path(specimen.name).suffix
            specimen.make(images / f"odd{number}{suffix}")
            write_geotiff(labels / f"odd{number}.tif", scene()[1])
        vector = folder / "ground.geojson"
        shape = [[14.9, 44.9], [15.1, 44.9], [15.1, 45.3], [14.9, 45.3], [14.9, 44.9]]
        geometry = {"type": "Polygon", "coordinates": [shape]}
        vector.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}))
        network = bench.network("hela_nuclei")
        flags: dict[str, tuple[object, ...]] = {
            "footprints.crop": (images.parent, folder / "out", "--size", "32"),
            "permeability.make_masks": (vector, "--ortho", images, "--out", folder / "out", "--burn", "1"),
            "hela_nuclei.make_video": (images, "--checkpoint", network, "--out", folder / "v.avi"),
            "hela_nuclei.infer": (images, "--checkpoint", network, "--output-dir", folder / "out"),
        }
        if command.split(".")[1] == "infer" and command != "hela_nuclei.infer":
            flags[command] = (
                images,
                "--checkpoint",
                bench.network(command.split(".")[0]),
                "--output-dir",
                folder / "out",
            )
        verdict = bench.judge(folder, command, *flags[command], limit=60)
        verdict.what += f" folder {' '.join(repr(s.name) for s in specimens[:3])}"
        if not verdict.outcome.killed:
            named = [f"odd{n}{Path(s.name).suffix}" for n, s in enumerate(specimens) if s.expect == BAD]
            verdict.faults += naming_faults(verdict.outcome, named)
            if named and verdict.outcome.code != 1:
                verdict.faults.append(f"exit code {verdict.outcome.code} with bad files among good ones")
        return verdict


def in_the_way(bench: Bench, task: str, *flags: object) -> Verdict:
    """The user's own files have the names of all results: they stay, the input is named as failed."""
    with bench.folder() as folder:
        results = folder / "results"
        image = write_geotiff(folder / "a.tif", scene()[0])
        free = write_picture(folder / "free.png", scene()[0])
        network = bench.network(task)
        bench.arena.run(f"{task}.infer", image, "--checkpoint", network, "--output-dir", results, *flags, cwd=folder)
        names = sorted(p.name for p in results.iterdir() if p.name.startswith("a"))
        shutil.rmtree(results)
        results.mkdir()
        for name in names:
            (results / name).write_bytes(b"the user's own")
        verdict = bench.judge(
            folder, f"{task}.infer", image, free, "--checkpoint", network, "--output-dir", results, *flags
        )
        verdict.what += f" in the way: {names}"
        if verdict.outcome.code != 1 or not names:
            verdict.faults.append(f"exit code {verdict.outcome.code}, the user's files are in the way")
        if not (results / "free_mask.png").exists():
            verdict.faults.append("good picture not done: free.png")
        return verdict


def with_flags(bench: Bench, command: str, *flags: object) -> Verdict:
    """Flags that no input could make right: exit 2 before anything is read or written."""
    task, action = command.split(".")
    with bench.folder() as folder:
        image = write_picture(folder / "a.png", scene()[0])
        network = bench.network(task)
        if action == "infer":
            own: tuple[object, ...] = (image, "--checkpoint", network, "--output-dir", folder / "results")
        elif action == "train":
            data = write_training(task, folder / "data", 6)
            own = ("--data-root", data, *TRAINING[task], *COMMON, "--output-dir", folder / "results")
        else:
            own = (image, "--checkpoint", network, "--out", folder / "video.avi")
        verdict = bench.judge(folder, command, *own, *flags)
        verdict.what += f" {' '.join(map(str, flags))}"
        if verdict.outcome.code != 2:
            verdict.faults.append(f"exit code {verdict.outcome.code} with flags that cannot be right")
        made = [p.name for p in folder.iterdir() if p.name not in ("a.png", "data")]
        if made:
            verdict.faults.append(f"left over: {made}")
        return verdict


FLAGS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (command, words)
    for command, many in {
        "footprints.infer": (
            ("--tile-size", "-1"), ("--tile-size", "1"), ("--overlap", "1"), ("--overlap", "nan"),
            ("--overlap", "-0.1"), ("--scale", "0"), ("--scale", "nan"), ("--scale", "-1"),
            ("--scale", "1e9"), ("--threshold", "2"),
            ("--threshold", "nan"), ("--input-range", "1", "0"), ("--input-range", "nan", "1"),
            ("--input-range", "0", "inf"), ("--min-area", "-1"), ("--min-area", "nan"), ("--simplify", "-1"),
            ("--simplify", "nan"), ("--simplify", "inf"), ("--device", "toaster"), ("--nonsense", "1"),
            ("--vector", "kml"), ("--checkpoint", "nowhere.pt"), ("nowhere.png",), ("--output-dir", "a.png"),
            ("--output-dir", "a.png/deeper"), ("--output-dir", "/proc/nowhere"), ("--output-dir", "/dev/null/x"),
        ),
        "hela_nuclei.infer": (
            ("--tile-size", "-1"), ("--tile-size", "1"), ("--overlap", "1"), ("--overlap", "nan"), ("--scale", "0"),
            ("--scale", "nan"), ("--threshold", "nan"), ("--min-area", "-1"), ("--axes", "QQ"), ("--channel", "-1"),
            ("--input-range", "nan", "1"), ("--input-range", "5", "5"), ("--output-dir", "a.png"),
        ),
        "hela_nuclei.make_video": (
            ("--fps", "0"), ("--fps", "nan"), ("--fps", "inf"), ("--out", "x.txt"), ("--threshold", "nan"),
            ("--out", "a.png/x.avi"),
        ),
        "permeability.infer": (
            ("--window", "0", "0", "0", "0"), ("--window", "-1", "0", "1", "1"), ("--tile-size", "1"),
        ),
        "footprints.train": (
            ("--lr", "nan"), ("--lr", "inf"), ("--lr", "-1"), ("--epochs", "0"), ("--batch-size", "0"),
            ("--val-fraction", "nan"), ("--val-fraction", "1"), ("--ema", "nan"), ("--ema", "1"),
            ("--max-minutes", "nan"),
            ("--clip-norm", "nan"), ("--weight-decay", "nan"), ("--seed", "-1"), ("--workers", "-1"), ("--zoom", "nan"),
            ("--rotate", "inf"), ("--balance", "nan"), ("--loss", "nothing"), ("--loss", ""), ("--loss", "nan*bce"),
            ("--loss", "-1*bce"), ("--crop-size", "-1"), ("--crop-size", "10000000"), ("--widths", "0"),
            ("--widths", "1000000", "1000000"), ("--resume", "nowhere.pt"), ("--weights", "nowhere.pt"),
            ("--lr-factor", "nan"), ("--warmup-steps", "-1"), ("--seed", "99999999999999999999"),
        ),
        "potsdam_points.train": (
            ("--points", "-1"), ("--val-ids", "0-999999999"), ("--val-ids", "9-1"), ("--shrink", "0"),
            ("--gamma", "nan"), ("--weight-power", "inf"), ("--confidence", "nan"),
        ),
        "rooftops.train": (("--dropout", "nan"), ("--crop-size", "0"), ("--coverage", "nan")),
    }.items()
    for words in many
)  # fmt: skip
"""Commands with flags that cannot be right."""
