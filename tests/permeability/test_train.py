import csv
import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from common.command.config import read_yaml
from common.losses import LossRecipe, build_loss
from common.networks.checkpoint import load_checkpoint
from common.networks.precision import Precision
from common.training.experiment import Engine
from common.training.loop import seed_everything
from common.training.runs import load_train_config
from permeability import train
from permeability.samples import WindowAugmentation
from permeability.task import TASK
from tests.permeability.sheets import write_raster

FOLDER = Path(__file__).resolve().parents[2] / "permeability"


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_training_learns_what_color_tells_and_leaves_everything_behind(trained):
    run, result = trained
    history = rows(run)
    assert len(history) == 4 and max(float(row["miou"]) for row in history) > 0.75
    for name in ("config.yaml", "best_iou.pt", "best_loss.pt", "last.pt", "curves.png", "predictions.png",
                 "report.html", "test_metrics.json"):  # fmt: skip
        assert (run / name).is_file()
    scores = json.loads((run / "test_metrics.json").read_text())
    assert scores["miou"] > 0.75 and set(scores["per_class_iou"]) == {"No permeable", "Permeable"}
    assert scores["iou"] == scores["per_class_iou"]["Permeable"] and scores["n_images"] == 1
    for word in ("5 orthophotos", "train 3, val 1, test 1", "measured:", "mask pixels"):
        assert word in result.err


def test_the_checkpoint_knows_what_inference_needs(trained):
    card, state, _ = load_checkpoint(trained[0] / "best_iou.pt", "permeability")
    assert (card.arch, card.arch_args["encoder"], card.arch_args["outputs"]) == ("fpn", "resnet18", 2)
    assert card.classes == ["No permeable", "Permeable"] and card.palette[1] == (0, 128, 0)
    assert card.split["val"] == ["val/suelo3"] and len(card.split["train"]) == 3
    mean = np.array(card.normalization["mean"])
    assert ((mean > 0.2) & (mean < 0.6)).all() and mean[1] > mean[0] > mean[2]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_source_normalization_is_stored_too(easy, call, tmp_path, small):
    flags = [*small, "--normalization", "source", "--epochs", "1", "--samples-per-epoch", "4"]
    result = call("train", "--data-root", easy, *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.normalization == {"mean": [0.4312, 0.4267, 0.3845], "std": [0.2263, 0.2065, 0.1923]}


def test_a_training_at_another_resolution_is_scored_at_the_files_own(easy, call, tmp_path, small):
    flags = [*small, "--resolution", "1.0", "--crop-size", "32", "--epochs", "1", "--samples-per-epoch", "8"]
    result = call("train", "--data-root", easy, *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, _, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.scale == 0.5
    assert json.loads((tmp_path / "run" / "test_metrics.json").read_text())["n_pixels"] == 112 * 128


def test_four_bands(tmp_path, call, small):
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 255, (4, 70, 70), np.uint8)
        place = {"left": 1000.0 * number}
        write_raster(tmp_path / "photos" / f"{number}.tif", image, photometric="MINISBLACK", **place)
        write_raster(tmp_path / "masks" / f"m{number}.tif", (image[3] > 127).astype(np.uint8), **place)
    flags = ["--images", tmp_path / "photos", "--labels", tmp_path / "masks", *small, "--channels", "4"]
    flags += ["--epochs", "1", "--samples-per-epoch", "4"]
    result = call("train", *flags, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    card, state, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.arch_args["channels"] == 4 and len(card.normalization["mean"]) == 4
    assert state["encoder.conv1.weight"].shape[1] == 4
    flags[flags.index("measured")] = "source"
    call("train", *flags, "--output-dir", tmp_path / "other").mistake("--channels 4", "measured")


def test_a_killed_training_goes_on(easy, started, call, tmp_path, small):
    flags = ["--data-root", easy, *small, "--epochs", "30", "--samples-per-epoch", "8", "--flips"]
    process = started("train", *flags, "--output-dir", tmp_path / "run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(rows(tmp_path / "run"))
    result = call(
        "train", "--resume", "auto", "--output-dir", tmp_path / "run", "--data-root", easy, "--epochs", done + 2
    )
    assert result.code == 0, result.err
    assert [int(row["epoch"]) for row in rows(tmp_path / "run")] == list(range(1, done + 3)) and "resumed" in result.err


def test_mistakes_are_told(easy, call, tmp_path, small):
    def told(*words, root=easy, extra=()):
        call("train", "--data-root", root, *small, *extra, "--output-dir", tmp_path / "run").mistake(*words)

    told("--data-root", "no", root=tmp_path / "no")
    told("unetplusplus", "mit_b0", extra=("--arch", "unetplusplus", "--encoder", "mit_b0"))
    told("--balance", extra=("--balance", "2"))
    told("--crop-size 8", extra=("--crop-size", "8"))
    told("unknown loss", extra=("--loss", "mse"))
    bad = tmp_path / "bad"
    image, mask = np.zeros((3, 40, 40), np.uint8), np.ones((40, 40), np.uint8)
    mask[:9] = 0
    for number in range(3):
        write_raster(bad / "photos" / f"{number}.tif", image, left=1000.0 * number)
        crs = "EPSG:25829" if number == 2 else "EPSG:25830"
        write_raster(bad / "masks" / f"{number}.tif", mask + 5 * (number == 1), left=1000.0 * number, crs=crs)
    flags = ["--images", bad / "photos", "--labels", bad / "masks", *small, "--output-dir", tmp_path / "run"]
    call("train", *flags).mistake("1.tif", "bad file")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["demo", "source", "best", "deeplabv3plus_mit_b4"])
def test_every_recipe_runs(name, easy, call, tmp_path):
    recipe = read_yaml(FOLDER / f"{name}.yaml")
    flags = ["--config", FOLDER / f"{name}.yaml", "--data-root", easy, "--crop-size", "64", "--batch-size", "1"]
    flags += ["--epochs", "1", "--samples-per-epoch", "2", "--max-minutes", "0", "--output-dir", tmp_path / "run"]
    if recipe.get("encoder") == "mit_b4":
        flags += ["--encoder", "mit_b0"]
    result = call("train", *flags)
    assert result.code == 0, result.err
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["arch"] == recipe["arch"] and saved["loss"] == recipe["loss"]


def test_both_names_of_the_sources_recipe_are_the_same():
    recipe = read_yaml(FOLDER / "source.yaml")
    assert recipe == read_yaml(FOLDER / "deeplabv3plus_mit_b4.yaml")
    expected = {"lr": 6e-5, "weight_decay": 1e-5, "batch_size": 3, "grad_accum": 2, "epochs": 250, "crop_size": 512,
                "samples_per_epoch": 1024, "lr_factor": 0.3, "lr_patience": 10, "label_smoothing": 0.05}  # fmt: skip
    assert {key: float(recipe[key]) for key in expected} == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Seven sheets in train, two in val and one in test; green is brightest in training, red in test."""
    root = tmp_path_factory.mktemp("folders") / "data"
    for number, part in enumerate(["train"] * 7 + ["val"] * 2 + ["test"]):
        mask = np.zeros((96, 96), np.uint8)
        mask[:, : 10 + 5 * number] = 1
        image = np.full((3, 96, 96), {"train": 50, "val": 100, "test": 200}[part], np.uint8)
        image[:, ::2] += 20
        name, left = f"{number}.tif", 1000.0 * number
        write_raster(root / "INSUMOS" / "ORTOFOTOS" / name, image, left=left)
        write_raster(root / "DATA" / "OUTPUT" / "MASCARAS" / part / name, mask, left=left, nodata=255)
    return root


@pytest.fixture
def configure(folders, small, tmp_path):
    """The configuration of a training on those sheets."""

    def configured(*more, root=folders, images=None):
        where = ["--data-root", root] if images is None else ["--images", images[0], "--labels", images[1]]
        words = [*where, *small, "--device", "cpu", "--output-dir", tmp_path / "run", *more]
        return load_train_config(train.Config, FOLDER, [str(word) for word in words])

    return configured


@pytest.fixture
def fitted():
    """What a training hands to the training loop."""

    def run(config, data=None):
        data = train.load_data(config) if data is None else data
        seed_everything(config.seed)
        return data, train.build(config, data)

    return run


def test_the_loop_gets_the_training_part_the_validation_part_and_the_flags(configure, fitted):
    flags = ("--balance", 0.25, "--flips", "--rotate", 11, "--zoom", 0.22, "--color", 0.33, "--samples-per-epoch", 7)
    data, experiment = fitted(configure(*flags, "--seed", 3))
    windows, tiles = experiment.train_data, experiment.val_data
    assert {site.id for site in windows.sites} == {f"train/{number}" for number in range(7)}
    assert {tile.site.id for tile in tiles.tiles} == {"val/7", "val/8"}
    assert (len(windows), windows.crop, windows.balance, windows.channels) == (7, 64, 0.25, 3)
    assert windows.augment == WindowAugmentation(flips=True, rotate=11, zoom=0.22, color=0.33)
    card, split = experiment.card, data.split
    assert card.split == split and experiment.test_images == 1 and card.scale == 1
    assert card.normalization["mean"] == pytest.approx([60 / 255] * 3, abs=1e-3), "of the training part alone"
    assert card.normalization["std"] == pytest.approx([10 / 255] * 3, abs=1e-3)
    assert windows[(0, 0)]["image"].dtype == torch.uint8, "bytes travel"


def test_augmentation_can_be_switched_off_and_zero_samples_cover_the_sites(configure, fitted):
    windows = fitted(configure("--no-augment", "--flips", "--samples-per-epoch", 0))[1].train_data
    assert windows.augment is None and len(windows) == round(7 * 96**2 / 64**2)


def test_the_start_follows_the_seed(configure, fitted):
    config = configure("--normalization", "source")
    data = train.load_data(config)
    first, second, other = (
        fitted(replace(config, seed=seed), data)[1].model.state_dict()["decoder.p5.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_start_can_be_a_file(configure, fitted, tmp_path):
    torch.manual_seed(9)
    network = TASK.build("fpn", encoder="resnet18")
    torch.save(network.state_dict(), tmp_path / "start.pth")
    model = fitted(configure("--weights", tmp_path / "start.pth"))[1].model
    assert all(torch.equal(model.state_dict()[key], value) for key, value in network.state_dict().items())


def test_validation_can_be_thinned_and_test_not(folders, configure, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TILE_SIDE", 48)
    assert {part: len(tiles) for part, tiles in train.load_data(configure()).tiles.items()} == {"val": 8, "test": 4}
    thinned = train.load_data(configure("--val-tiles", 3))
    assert {part: len(tiles) for part, tiles in thinned.tiles.items()} == {"val": 3, "test": 4}
    assert {tile.site.id for tile in thinned.tiles["val"]} == {"val/7", "val/8"}


def test_masks_without_folders_are_split_by_the_flags(folders, configure, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (folders / "DATA" / "OUTPUT" / "MASCARAS").rglob("*.tif"):
        shutil.copy(path, masks / path.name)
    images = (folders / "INSUMOS" / "ORTOFOTOS", masks)
    flags = ("--val-fraction", 0.2, "--test-fraction", 0.3)
    splits = [train.load_data(configure(*flags, "--seed", seed, images=images)).split for seed in (0, 0, 1)]
    assert {part: len(ids) for part, ids in splits[0].items()} == {"train": 5, "val": 2, "test": 3}
    assert splits[0] == splits[1] != splits[2]


def test_masks_on_another_grid_need_a_flag_at_any_resolution(folders, configure, tmp_path):
    root = tmp_path / "shifted"
    shutil.copytree(folders, root)
    path = root / "DATA" / "OUTPUT" / "MASCARAS" / "test" / "9.tif"
    write_raster(path, np.tile(np.arange(96) > 40, (96, 1)).astype(np.uint8), left=9000.2, nodata=255)
    with pytest.raises(ValueError, match=r"1 bad file.*--reproject"):
        train.load_data(configure(root=root))
    assert not train.load_data(configure("--skip-bad", root=root)).split["test"]
    for more in ((), ("--resolution", 1.0)):
        config = configure("--reproject", *more, root=root)
        data = train.load_data(config)
        assert data.split["test"] == ["test/9"]
        assert [tile.id for tile in train.tiles_at_own_size(config, data)["test"]] == ["test/9"]


def test_a_validation_part_that_is_ignored_everywhere_is_told(folders, configure, tmp_path):
    root = tmp_path / "empty"
    shutil.copytree(folders, root)
    for number in (7, 8):
        path = root / "DATA" / "OUTPUT" / "MASCARAS" / "val" / f"{number}.tif"
        write_raster(path, np.full((96, 96), 255, np.uint8), left=1000.0 * number, nodata=255)
    with pytest.raises(ValueError, match="validation part are ignored everywhere"):
        train.load_data(configure(root=root))


def test_without_a_test_part_the_validation_part_is_scored(folders, configure, monkeypatch, tmp_path):
    seen, outcomes = [], []

    def score(predictor, samples, until, handed):
        seen.append([sample.id for sample in samples])
        return SimpleNamespace(result=dict, ids=seen[-1])

    monkeypatch.setattr(train, "TILE_SIDE", 48)
    monkeypatch.setattr(train.Predictor, "load", lambda *args: SimpleNamespace(card=None, classify=None))
    monkeypatch.setattr(train, "score_samples", score)
    monkeypatch.setattr(train, "finish_run", lambda *args: outcomes.append(args[-1]))
    config = configure()
    data = train.load_data(config)
    run = SimpleNamespace(path=tmp_path)
    train.finish(run, config, data, [], None)
    train.finish(run, config, replace(data, tiles=data.tiles | {"test": []}), [], None)
    assert [len(samples) for samples in seen] == [4, 8]
    sheets = [(one.part, len({sample.image_id for sample in one.samples[one.part]})) for one in outcomes]
    assert sheets == [("test", 1), ("val", 2)], "sheets, not tiles"


def test_the_loss_is_that_of_the_flags(configure, fitted):
    _, experiment = fitted(configure("--loss", "ce+focal", "--label-smoothing", 0.3))
    assert experiment.card.loss == LossRecipe("ce+focal", label_smoothing=0.3) and experiment.criterion is None
    logits, target = torch.randn(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long)
    expected = build_loss("ce+focal", label_smoothing=0.3)(logits, target)
    loss = Engine.of(experiment, Precision(torch.device("cpu"), None)).criterion(logits, {"target": target})
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rotate", 181), ("--rotate 181", "larger than 180")),
        (("--color", -0.1), ("--color -0.1", "negative")),
        (("--zoom", 3), ("--zoom 3", "larger than 2")),
        (("--val-tiles", -1), ("--val-tiles", "negative")),
        (("--channels", 0), ("--channels 0",)),
        (("--generated", 0.2, "--channels", 4, "--normalization", "measured"), ("--generated 0.2", "3 bands, not 4")),
        (("--crop-size", 31), ("--crop-size 31", "at least 32")),
    ],
)
def test_values_out_of_range_are_told(configure, flags, words):
    with pytest.raises(ValueError) as error:
        configure(*flags)
    for word in words:
        assert word in str(error.value)


def test_the_limits_themselves_are_allowed(configure):
    config = configure("--rotate", 180, "--color", 1, "--zoom", 2, "--balance", 1, "--crop-size", 32, "--val-tiles", 0)
    assert (config.rotate, config.color, config.zoom, config.balance, config.crop_size) == (180, 1, 2, 1, 32)
