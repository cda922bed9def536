"""The weights that ship: they load in every task, mean what they say, and are what commands take without a training."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import tifffile
import torch

from common.command.cli import exit_code
from common.networks.checkpoint import read_payload, read_weights
from common.networks.normalize import normalize
from common.networks.unet_small import SMALL, UNetSmall
from common.scenes.aerial import LAND, render_scene, write_footprints
from footprints.task import TASK as FOOTPRINTS
from hela_nuclei.scenes.sequences import write_challenge
from hela_nuclei.task import TASK as NUCLEI
from permeability.task import TASK as PERMEABILITY
from potsdam_points.task import TASK as POTSDAM
from rooftops.task import TASK as ROOFTOPS

AERIAL = (FOOTPRINTS, PERMEABILITY, POTSDAM, ROOFTOPS)


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run a task's command in an empty working directory: exit code, stdout, stderr."""

    def caller(task, script, *args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capfd.readouterr()
        code = exit_code(import_module(f"{task}.{script}").main)
        return code, *capfd.readouterr()

    return caller


@pytest.mark.parametrize("task", [*AERIAL, NUCLEI], ids=lambda task: task.name)
def test_what_ships_is_a_network_of_the_task(task):
    network, card = task.load(task.shipped.path)
    assert (card.task, card.classes, card.palette) == (task.name, task.classes, task.palette)
    if task is not NUCLEI:
        assert (card.threshold, card.looks) == (task.shipped.threshold, task.shipped.looks)
    channels = card.arch_args.get("channels", 3)
    with torch.inference_mode():
        outputs = network(torch.rand(1, channels, 64, 96))
    assert outputs.shape == (1, 2 if task is NUCLEI else len(task.classes), 64, 96)
    assert outputs.isfinite().all() and all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("task", AERIAL, ids=lambda task: task.name)
def test_a_tasks_probabilities_are_sums_of_the_worlds_after_its_prior(task):
    payload = read_payload(task.shipped.path)
    assert payload["card"]["classes"] == list(LAND)
    whole = UNetSmall(**payload["card"]["arch_args"]).eval()
    whole.load_state_dict(payload["model"])
    network, _ = task.load(task.shipped.path)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = whole(image)
        for name, more in task.shipped.prior.items():
            logits[:, LAND.index(name)] += more
        apart, together = logits.softmax(1), network(image).softmax(1)
    assert sorted(name for group in task.shipped.groups for name in group) == sorted(LAND)
    for output, group in enumerate(task.shipped.groups):
        expected = sum(apart[:, LAND.index(name)] for name in group)
        assert torch.allclose(together[:, output], expected, atol=1e-5)


def test_the_files_are_small_and_come_from_generated_scenes_alone():
    for task in (FOOTPRINTS, NUCLEI):
        path, payload = task.shipped.path, read_payload(task.shipped.path)
        assert path.stat().st_size < 10e6 and path.with_suffix(".md").is_file()
        assert payload["card"]["data_root"] == "generated scenes" and "training" not in payload
        assert all(value.dtype == torch.float16 for value in payload["model"].values() if value.ndim > 1)


@pytest.mark.parametrize(
    ("task", "arch", "arch_args"),
    [
        *((task, "unet_small", {"outputs": len(task.classes), **SMALL}) for task in AERIAL),
        (NUCLEI, "unet", {"outputs": 1}),
        (NUCLEI, "unet", {"outputs": 2}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_training_starts_from_all_but_a_head_of_other_classes(task, arch, arch_args, capsys):
    network = task.build(arch, **arch_args)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    task.initialize(network, "shipped")
    shipped, same = read_weights(task.shipped.path), task is NUCLEI and arch_args["outputs"] == 2
    for key, value in network.state_dict().items():
        fresh = key.split(".")[0] in ("head", "out") and not same
        assert torch.equal(value, before[key] if fresh else shipped[key].to(value.dtype)), key
    said = capsys.readouterr().err
    assert "which ships" in said and ("head.weight" in said or "out.weight" in said) != same


class Pictures:
    """Generated towns as samples of a training."""

    def __init__(self, count, seed):
        towns = [render_scene(seed + number, 128, 128, 0.35, undefined=False)[0] for number in range(count)]
        self.images = [torch.from_numpy(town).movedim(-1, 0) / 255 for town in towns]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        return {"image": self.images[key[0]]}


@pytest.mark.parametrize("task", AERIAL, ids=lambda task: task.name)
def test_a_head_fitted_to_samples_says_the_tasks_classes_from_the_start(task):
    outputs = 1 if task is FOOTPRINTS else len(task.classes)
    network = task.build("unet_small", **{**SMALL, **({} if task is FOOTPRINTS else {"outputs": outputs})})
    card = task.card("unet_small", {}, normalization={"mean": [0.4] * 3, "std": [0.16] * 3})
    task.initialize(network, "shipped", card, Pictures(8, seed=70))
    whole, own = task.load(task.shipped.path)
    images = torch.stack(Pictures(6, seed=170).images)
    with torch.inference_mode():
        expected = whole(normalize(images, own.normalization)).argmax(1)
        logits = network.eval()(normalize(images, card.normalization))
    found = (logits[:, 0] > 0).long() if outputs == 1 else logits.argmax(1)
    assert (found == expected).float().mean() > 0.85
    assert len(expected.unique()) == len(task.classes)


@pytest.mark.parametrize("normalization", [{}, {"mean": [0.3, 0.4, 0.6], "std": [0.1, 0.3, 0.5]}], ids=str)
def test_under_another_normalization_the_network_says_what_the_file_does(normalization):
    task = replace(ROOFTOPS, classes=list(LAND), shipped=replace(ROOFTOPS.shipped, groups=[[name] for name in LAND]))
    file, own = task.load(task.shipped.path)
    towns = Pictures(8, seed=70)
    images = torch.stack(towns.images)
    network = task.build("unet_small", outputs=len(LAND), **SMALL).eval()
    task.initialize(network, "shipped", task.card("unet_small", {}, normalization=normalization), towns)
    with torch.inference_mode():
        read = [(file, normalize(images, own.normalization)), (network, normalize(images, normalization))]
        first, fitted = (each.stem[0](given)[..., 1:-1, 1:-1] for each, given in read)  # without the padding
        expected, said = (each(given).argmax(1) for each, given in read)
    torch.testing.assert_close(fitted, first, atol=1e-4, rtol=1e-4)
    assert (said == expected).float().mean() > 0.94


def test_a_head_for_ones_own_classes_stays_random():
    network = ROOFTOPS.build("unet_small", outputs=2, **SMALL)
    before = network.head.weight.clone()
    card = ROOFTOPS.card("unet_small", {}, classes=["ground", "pool"])
    ROOFTOPS.initialize(network, "shipped", card, Pictures(2, seed=0))
    assert torch.equal(network.head.weight, before)


def test_other_networks_are_told_what_fits():
    with pytest.raises(ValueError, match="--weights shipped fits --arch unet_small with its widths alone"):
        FOOTPRINTS.initialize(UNetSmall(1, (8, 16)), "shipped")


def test_buildings_in_a_fresh_clone(call, tmp_path):
    """Pictures of two ground resolutions in one folder: evaluation reads each as inference does."""
    folders = [tmp_path / "town" / kind for kind in ("images", "labels")]
    for gsd in (0.5, 0.2):
        write_footprints(tmp_path / str(gsd), counts=(0, 0, 4), seed=11, size=224, gsd=gsd)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for path in (tmp_path / str(gsd) / "test" / folder.name).iterdir():
                path.rename(folder / f"{gsd}_{path.name}")
    code, _, said = call("footprints", "infer", folders[0], "--output-dir", "out")
    assert code == 0, said
    assert "aerial.pt (ships; made from generated scenes alone" in said
    both = either = 0
    for path in folders[0].iterdir():
        found = tifffile.imread(tmp_path / "out" / f"{path.stem}_mask.tif") == 1
        truth = tifffile.imread(folders[1] / path.name) > 0
        both, either = both + (found & truth).sum(), either + (found | truth).sum()
    assert both / either > 0.25
    flags = ("--images", folders[0], "--labels", folders[1])
    code, out, said = call("footprints", "evaluate", "--checkpoint", "shipped", *flags, "--split", "all")
    assert code == 0, said
    assert json.loads(out.splitlines()[-1])["iou"] == pytest.approx(both / either, abs=1e-3)


def test_nuclei_in_a_fresh_clone(call, tmp_path):
    write_challenge(tmp_path / "dish", sequences=1, frames=2, height=200, width=220, nuclei=14, seed=5)
    code, _, said = call("hela_nuclei", "infer", tmp_path / "dish" / "01", "--output-dir", "out")
    assert code == 0, said
    assert "nuclei.pt (ships; made from generated scenes alone" in said
    code, out, said = call(
        "hela_nuclei", "evaluate", "--checkpoint", "shipped", "--data-root", "dish", "--split", "all"
    )
    assert code == 0, said
    scores = json.loads(out.splitlines()[-1])
    assert scores["iou_foi"] > 0.8 and scores["seg"] > 0.75 and scores["det"] > 0.85


def test_a_run_of_ones_own_comes_first(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert FOOTPRINTS.checkpoints([]) == [FOOTPRINTS.shipped.path]
    own = tmp_path / "runs" / "footprints" / "1" / "best_iou.pt"
    own.parent.mkdir(parents=True)
    own.touch()
    assert [path.resolve() for path in FOOTPRINTS.checkpoints([])] == [own]
    assert "ships" in capsys.readouterr().err.splitlines()[0]
    assert np.array_equal(FOOTPRINTS.checkpoints(["shipped"]), [FOOTPRINTS.shipped.path])
