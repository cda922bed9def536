"""Small valid things to spoil: pictures, rasters, networks of a few thousand weights, data sets of a few pictures."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import rasterio
import tifffile
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from common.networks.checkpoint import ModelCard, save_checkpoint

SIZE = (40, 56)
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
CRS = "EPSG:32633"
ROADS = {"potsdam_points": ["impervious", "building", "low_vegetation", "tree", "car", "clutter"]}


def scene(size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Red rectangles on green ground (H, W, 3), and where they are (H, W), 0 and 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(4):
        row, col = rng.integers(0, size[0] - 10), rng.integers(0, size[1] - 10)
        mask[row : row + rng.integers(8, 16), col : col + rng.integers(8, 16)] = 1
    colors = np.where(mask[..., None] > 0, [170, 80, 60], [80, 120, 60]) + rng.normal(0, 15, (*size, 3))
    return np.clip(colors, 0, 255).astype(np.uint8), mask


def write_geotiff(path: Path, array: NDArray[np.generic], **options: object) -> Path:
    """Write (H, W) or (H, W, C) as a small GeoTIFF."""
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    profile = {
        "driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "dtype": bands.dtype, "transform": PLACE, "crs": CRS, **options,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)
    return path


def write_picture(path: Path, array: NDArray[np.generic], **options: object) -> Path:
    """Write a picture by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def checkpoint(task: str, path: Path, channels: int = 3) -> Path:
    """A network of a task with random weights, whose first layer tells red from green a little."""
    arch, arch_args, classes = {
        "rooftops": ("deeplabv3plus", {"encoder": "resnet18", "outputs": 2}, ["background", "roof"]),
        "footprints": ("unet_small", {"widths": [4, 4, 8], "outputs": 1}, ["background", "building"]),
        "hela_nuclei": ("unet", {"outputs": 1, "channels": 1, "widths": [4, 4, 8, 8]}, ["background", "nucleus"]),
        "potsdam_points": ("unet_small", {"widths": [4, 4, 8, 8, 8], "outputs": 6}, ROADS["potsdam_points"]),
        "permeability": (
            "unet_small", {"widths": [4, 4, 8], "outputs": 2, "channels": channels}, ["non_permeable", "permeable"],
        ),
    }[task]  # fmt: skip
    torch.manual_seed(0)
    model = import_module(f"{task}.task").TASK.build(arch, **arch_args)
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    card = ModelCard(task, arch, arch_args, classes, dict(enumerate(colors[: len(classes)])))
    save_checkpoint(path, card, model.state_dict())
    return path


def write_training(task: str, folder: Path, count: int = 6) -> Path:
    """A data set in a task's layout."""
    for number in range(count):
        image, mask = scene((64, 64), number)
        if task == "rooftops":
            write_picture(folder / "images" / "images" / f"p{number}.png", image)
            write_picture(folder / "label" / "label" / f"p{number}_label.tif", mask * 255)
        elif task == "footprints":
            part = ("train", "train", "train", "train", "val", "test")[number % 6]
            write_geotiff(folder / part / "images" / f"p{number}.tif", image)
            write_geotiff(folder / part / "labels" / f"p{number}.tif", mask * np.uint8(255))
        elif task == "hela_nuclei":
            (folder / "01").mkdir(parents=True, exist_ok=True)
            (folder / "01_ST" / "SEG").mkdir(parents=True, exist_ok=True)
            frame = (mask.astype(np.uint16) * 2000 + 33000 + image[..., 0]).astype(np.uint16)
            tifffile.imwrite(folder / "01" / f"t{number:03}.tif", frame)
            tifffile.imwrite(folder / "01_ST" / "SEG" / f"man_seg{number:03}.tif", mask.astype(np.uint16))
        elif task == "potsdam_points":
            label = np.where(mask[..., None] > 0, [0, 0, 255], [0, 255, 0]).astype(np.uint8)
            write_picture(folder / "Images" / f"Image_{number}.tif", image)
            write_picture(folder / "Labels" / f"Label_{number}.tif", label)
        else:
            part = ("train", "train", "train", "train", "val", "test")[number % 6]
            place = PLACE @ Affine.translation(1000 * number, 0)
            photo = folder / "INSUMOS" / "ORTOFOTOS" / f"p{number}.tif"
            target = folder / "DATA" / "OUTPUT" / "MASCARAS" / part / f"p{number}.tif"
            write_geotiff(photo, image, transform=place)
            write_geotiff(target, mask, transform=place, nodata=255)
    return folder


TRAINING: dict[str, tuple[str, ...]] = {
    "rooftops": (
        "--encoder", "resnet18", "--crop-size", "32", "--val-fraction", "0.2", "--test-fraction", "0.2", "--dropout",
        "0", "--scheduler", "constant",
    ),
    "footprints": ("--arch", "unet_small", "--widths", "4", "4", "8", "--crop-size", "64", "--normalization", "aerial"),
    "hela_nuclei": ("--widths", "4", "4", "8", "8", "--crop-size", "32", "--border", "2", "--val-fraction", "0.2"),
    "potsdam_points": (
        "--arch", "unet_small", "--widths", "4", "4", "8", "8", "8", "--crop-size", "64", "--val-last", "2",
        "--points", "50", "--test-fraction", "0",
    ),
    "permeability": (
        "--arch", "unet_small", "--normalization", "measured", "--crop-size", "32", "--samples-per-epoch", "8",
        "--grad-accum", "1", "--scheduler", "constant",
    ),
}  # fmt: skip
"""Flags of a training of one epoch that takes a second or two."""
COMMON = ("--epochs", "1", "--batch-size", "2", "--amp", "off", "--early-stopping", "0")
