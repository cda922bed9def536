"""Reading any picture or raster, and writing masks and probabilities in its frame.

Every image becomes bands (C, H, W) in the file's own numbers and a mask of the pixels that mean something: alpha, mask
bands, declared nodata and NaN all end up in that mask. Values are brought to 0-1 by a range that is known beforehand
(given, or the number type's), never by the image's own maximum, so that equal values mean the same in every image.
What is written has the input's size, coordinate system and nodata area.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import rasterio
import tifffile
from affine import Affine
from PIL import Image, ImageOps, PngImagePlugin
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from common.checkpoint import atomic_path

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2")
TIFF_EXTENSIONS = (".tif", ".tiff")
OUTPUT_ENDINGS = ("_mask", "_prob", "_overlay")
WORLD_FILES = (".jgw", ".pgw", ".bpw", ".wld")
NODATA = 255
MIN_USED_RANGE = 0.1
GEOTIFF = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "deflate",
    "bigtiff": "IF_SAFER",
}

Array = npt.NDArray[Any]
PaletteReading = Literal["rgb", "label", "index"]
Mask = npt.NDArray[np.uint8]
Color = tuple[int, int, int]

Image.MAX_IMAGE_PIXELS = None  # a sheet of half a gigapixel is a normal input here, not an attack


@dataclass
class Raster:
    """An image in memory, with what is needed to write a result in the same frame."""

    data: Array
    """Bands (C, H, W) in the file's own number type, without alpha."""
    valid: npt.NDArray[np.bool_]
    """(H, W); False where a pixel is transparent, masked out, nodata or not finite."""
    path: Path
    """File it was read from."""
    crs: CRS | None = None
    """Coordinate reference system."""
    transform: Affine | None = None
    """Affine map from (column, row) to coordinates; None without georeference."""
    nodata: float | None = None
    """Declared nodata value."""

    @property
    def is_georeferenced(self) -> bool:
        """Whether pixels have a place on the ground."""
        return self.transform is not None


# Finding files


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)], path.name


def _images_of_folder(folder: Path) -> list[Path]:
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and not path.stem.endswith(OUTPUT_ENDINGS)
        and path.is_file()
    ]
    return sorted(images, key=_natural_key)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Image files named directly or lying in the folders named, each once.

    Folders are not searched recursively and are sorted naturally (``t2`` before ``t10``); hidden files and our own
    outputs (``*_mask``, ``*_prob``, ``*_overlay``) in them are passed over. A file named directly is always taken.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: There is no image at all.
    """
    found: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        for image in _images_of_folder(path) if path.is_dir() else [path]:
            found.setdefault(image.resolve(), image)
    if not found:
        places = ", ".join(str(path) for path in inputs) or "no inputs"
        known = " ".join(extension.lstrip(".") for extension in IMAGE_EXTENSIONS)
        raise ValueError(f"{places}: no images found; name files, or folders that directly hold images ({known})")
    return list(found.values())


def output_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """Name stem of the outputs of each input, unique among them.

    It is the input's stem; where inputs share it, with extension (``a.png`` and ``a.tif``); where they share that too,
    with the folder's name before it (``01_t000`` and ``02_t000``), and so on upwards.
    """
    candidates: dict[Path, list[str]] = {}
    for path in paths:
        folders = path.absolute().parts[1:-1]
        heads = ["_".join((*folders[len(folders) - depth :], "")) for depth in range(len(folders) + 1)]
        candidates[path] = [head + tail for head in heads for tail in (path.stem, path.name)]
    level = dict.fromkeys(paths, 0)
    while True:
        stems = {path: names[min(level[path], len(names) - 1)] for path, names in candidates.items()}
        counts = Counter(stem.casefold() for stem in stems.values())  # some file systems ignore case
        shared = [path for path, stem in stems.items() if counts[stem.casefold()] > 1]
        if not shared:
            return stems
        if all(level[path] >= len(candidates[path]) for path in shared):
            return stems | {path: f"{index}_{stems[path]}" for index, path in enumerate(shared, start=1)}
        for path in shared:
            level[path] += 1


# Reading


@contextmanager
def _quiet() -> Iterator[None]:
    """A raster without georeference is as good as any other here; damaged EXIF or odd palettes are not news either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _expand_palette(indices: Array, colors: Mapping[int, Sequence[int]]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """RGB bands and opacity of palette indices; indices without a color are black."""
    table = np.zeros((1 << (8 * indices.dtype.itemsize), 4), np.uint8)
    for index, color in colors.items():
        table[index] = color
    rgba = table[indices]
    return np.moveaxis(rgba[..., :3], -1, 0).copy(), rgba[..., 3] > 0


def _read_gdal(path: Path, palette: PaletteReading) -> Raster:
    """Read with rasterio: georeference, masks, world files. A color table is applied for ``rgb`` only."""
    with rasterio.open(path) as dataset:
        if dataset.subdatasets:
            return _read_tifffile(path)
        interpretation = dataset.colorinterp
        bands = [i for i, meaning in enumerate(interpretation, start=1) if meaning != ColorInterp.alpha]
        if not bands:
            raise ValueError("it has an alpha band only")
        data: Array = dataset.read(bands)
        valid = np.asarray(dataset.dataset_mask() != 0)
        if palette == "rgb" and len(bands) == 1 and interpretation[0] == ColorInterp.palette:
            data, opaque = _expand_palette(data[0], dataset.colormap(1))
            valid &= opaque
        placed = dataset.crs is not None or not dataset.transform.is_identity
        transform = dataset.transform if placed else None
        return Raster(data, valid, path, dataset.crs, transform, dataset.nodata)


def _read_tifffile(path: Path) -> Raster:
    """Read a TIFF that GDAL cannot decode, or whose pages may be bands."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes, data = series.axes, series.asarray()
        extra = series.keyframe.extrasamples
    if axes not in ("YX", "YXS", "SYX", "CYX"):
        raise ValueError(f"it is a stack with axes {axes} of {data.shape}, one picture is expected; save single frames")
    data = data[None] if axes == "YX" else np.moveaxis(data, -1, 0) if axes == "YXS" else data
    valid = np.ones(data.shape[1:], bool)
    if extra and "S" in axes and extra[-1] in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
        data, valid = data[:-1], data[-1] > 0
    return Raster(np.ascontiguousarray(data), valid, path)


def _read_tiff(path: Path, palette: PaletteReading) -> Raster:
    try:
        return _read_gdal(path, palette)
    except RasterioIOError as error:
        if "missing codec" not in str(error):
            raise
        return _read_tifffile(path)


def _has_16_bit_colors(path: Path) -> bool:
    """Whether a PNG has more than one 16-bit channel; Pillow would cut them to 8 bits without a word."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] in (2, 4, 6)


def _plain_mode(image: Image.Image, palette: PaletteReading) -> Image.Image:
    """The picture as grey or RGB, with alpha if it has any transparency."""
    transparent = image.mode == "PA" or "transparency" in image.info
    mode = image.mode
    if mode in ("P", "PA"):
        colors = np.reshape(image.getpalette() or [], (-1, 3))
        grey = bool((colors == colors[:, :1]).all())
        if palette == "index":
            return image
        mode = "L" if palette == "label" and grey else "RGBA" if transparent else "RGB"
    elif transparent and mode in ("1", "L", "RGB"):
        mode = "RGBA" if mode == "RGB" else "LA"
    elif mode == "1":
        mode = "L"
    elif mode not in ("L", "LA", "RGB", "RGBA", "F") and not mode.startswith("I"):
        mode = "RGB"
    return image if mode == image.mode else image.convert(mode)


def _read_picture(path: Path, palette: PaletteReading) -> Raster:
    """Read a picture without georeference, turned as its EXIF orientation says."""
    if _has_16_bit_colors(path):
        array = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    else:
        with Image.open(path) as opened:
            opened.load()
            array = np.asarray(_plain_mode(ImageOps.exif_transpose(opened), palette))
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    valid = np.ones(bands.shape[1:], bool)
    if len(bands) in (2, 4):
        bands, valid = bands[:-1], bands[-1] > 0
    return Raster(np.array(bands, dtype=bands.dtype.newbyteorder("="), order="C"), valid, path)


def _read(path: Path, palette: PaletteReading) -> Raster:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    suffix = path.suffix.lower()
    placed = palette == "rgb" and any(path.with_suffix(world).exists() for world in WORLD_FILES)
    reader = _read_tiff if suffix in TIFF_EXTENSIONS else _read_gdal if placed or suffix == ".jp2" else _read_picture
    try:
        with _quiet():
            raster = reader(path, palette)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything
        reason = str(error.__cause__ or error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an image: {reason}; remove or replace it") from error
    if raster.data.dtype.kind not in "buif":
        raise ValueError(f"{path}: has {raster.data.dtype} values; save it with whole or real numbers")
    if raster.data.dtype.kind == "f":
        raster.valid &= np.isfinite(raster.data).all(axis=0)
    return raster


def read_raster(path: Path) -> Raster:
    """Read an image of any kind: RGB(A), grey, palette (as RGB), 8 or 16 bit, float, any number of bands.

    Alpha is taken off the bands and becomes ``valid``, as do mask bands, declared nodata (where all bands have it) and
    NaN. Pictures are turned as their EXIF orientation says; a picture with a world file is georeferenced and is not.
    The fourth band of a TIFF counts as alpha if and only if the file declares it so.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, is damaged, or is a stack of several pictures.
    """
    return _read(path, "rgb")


def read_label(path: Path, *, colors: bool = True) -> Array:
    """Read a label picture in its own values.

    A palette PNG gives its colors if any color of the palette is not grey, else the grey values; with ``colors=False``
    it gives the palette indices. The color table of a TIFF only decorates class indices (`write_mask` makes such
    files), so a TIFF always gives the indices. Transparency is dropped; `read_raster` has it.

    Args:
        path: Label file.
        colors: Read a palette PNG as colors, not as indices.

    Returns:
        (H, W) of whole numbers, or (H, W, 3) uint8 or uint16 colors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, has neither one nor three bands, or its values are not whole numbers.
    """
    data = _read(path, "label" if colors else "index").data
    if len(data) not in (1, 3):
        raise ValueError(f"{path}: a label has 1 band (classes) or 3 (colors), this file has {len(data)}")
    if data.dtype.kind == "f":
        if not np.isfinite(data).all() or (data != np.rint(data)).any():
            raise ValueError(f"{path}: label values are not whole numbers; save classes as integers")
        data = data.astype(np.int64)
    return data[0] if len(data) == 1 else np.ascontiguousarray(np.moveaxis(data, 0, -1))


# Value ranges


def dtype_range(dtype: npt.DTypeLike) -> tuple[float, float]:
    """Values that mean black and white in a number type: 0-255, 0-65535, ..., and 0-1 for floats and booleans."""
    kind = np.dtype(dtype)
    return (0.0, float(np.iinfo(kind).max)) if kind.kind in "ui" else (0.0, 1.0)


def _checked_range(data: Array, value_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = dtype_range(data.dtype) if value_range is None else value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"--input-range needs two numbers LO < HI, got {low} {high}")
    return low, high


def scale_to_unit(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Map values to 0-1 by a fixed range, clipped; invalid pixels become 0.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W).
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (C, H, W) float32, finite.

    Raises:
        ValueError: The range is empty or not finite, or a valid pixel is NaN.
    """
    low, high = _checked_range(data, value_range)
    wide = data.dtype.itemsize > 4 or (data.dtype.kind in "ui" and data.dtype.itemsize > 2)
    scaled: npt.NDArray[np.floating[Any]] = data.astype(np.float64 if wide else np.float32)
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0.0, 1.0, out=scaled)
    scaled[:, ~valid] = 0.0
    if np.isnan(scaled).any():
        raise ValueError(f"{int(np.isnan(scaled).sum())} values marked as valid are NaN")
    return scaled.astype(np.float32, copy=False)


def range_warning(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> str | None:
    """One line if the valid values span under a tenth of the range or mostly lie outside it, else None."""
    low, high = _checked_range(data, value_range)
    values = data[:, valid]
    if not values.size:
        return None
    seen = float(values.min()), float(values.max())
    used = float(np.ptp(np.clip(seen, low, high))) / (high - low)
    outside = float(np.mean((values < low) | (values > high)))
    if used >= MIN_USED_RANGE and outside <= 0.5:
        return None
    problem = f"{outside:.0%} of them lie outside" if outside > 0.5 else f"only {used:.1%} of it is used"
    return (
        f"values {seen[0]:g} to {seen[1]:g} are read with the range {low:g} to {high:g}, {problem}; "
        f"set --input-range {seen[0]:g} {seen[1]:g}, or the sensor's range, if that is wrong"
    )


# Writing


def mask_suffix(like: Raster | None) -> str:
    """File type of a mask: ``.tif`` where there is a georeference to keep, else ``.png``."""
    return ".tif" if like is not None and like.is_georeferenced else ".png"


def _check_frame(path: Path, shape: tuple[int, ...], like: Raster | None) -> None:
    if like is not None and shape != like.valid.shape:
        raise ValueError(f"{path}: result of {shape} pixels does not fit its input of {like.valid.shape} ({like.path})")


def _write_geotiff(
    path: Path, bands: Array, like: Raster | None, tags: Mapping[str, str], colors: Mapping[int, Color] | None = None
) -> None:
    options: dict[str, Any] = dict(GEOTIFF, count=len(bands), height=bands.shape[1], width=bands.shape[2])
    options |= {"dtype": bands.dtype.name, "nodata": np.nan if bands.dtype.kind == "f" else NODATA}
    if bands.dtype.kind == "f":
        options["predictor"] = 3
    if like is not None and like.is_georeferenced:
        options |= {"crs": like.crs, "transform": like.transform}
    if colors is not None:
        options["photometric"] = "palette"
    with atomic_path(path) as temporary, _quiet(), rasterio.open(temporary, "w", **options) as dataset:
        if colors is not None:
            dataset.write_colormap(1, {**{index: (*rgb, 255) for index, rgb in colors.items()}, NODATA: (0, 0, 0, 0)})
        dataset.update_tags(**tags)
        dataset.write(bands)


def _write_png(path: Path, mask: Mask, palette: Mapping[int, Color] | None, tags: Mapping[str, str]) -> None:
    image, options = Image.fromarray(mask), {}
    if palette is not None:
        table = np.zeros((256, 3), np.uint8)
        for index, rgb in palette.items():
            table[index] = rgb
        image.putpalette(table.tobytes())
        if NODATA not in palette:
            options["transparency"] = NODATA
    text = PngImagePlugin.PngInfo()
    for key, value in tags.items():
        text.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text, **options)


def write_mask(
    path: Path,
    mask: Mask,
    *,
    palette: Mapping[int, Color] | None = None,
    like: Raster | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a class mask as PNG or tiled GeoTIFF, whichever the suffix says (see `mask_suffix`).

    Args:
        path: ``.png`` or ``.tif`` file; replaced in one step.
        mask: (H, W) uint8 class indices, 255 = nodata; 255 is also written wherever ``like`` is not valid.
        palette: Display color of each class; nodata is transparent in a PNG.
        like: Input whose frame and nodata area the mask gets.
        tags: Provenance, stored as TIFF tags or PNG text.

    Raises:
        ValueError: Mask of another type or size than the input, or a PNG that would lose a georeference.
    """
    _check_frame(path, mask.shape, like)
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"{path}: a mask is (H, W) uint8, got {mask.dtype} of shape {mask.shape}")
    if like is not None:
        mask = np.where(like.valid, mask, np.uint8(NODATA))
    if path.suffix.lower() in TIFF_EXTENSIONS:
        _write_geotiff(path, mask[None], like, tags or {}, palette)
    elif like is not None and like.is_georeferenced:
        raise ValueError(f"{path}: would lose the georeference of {like.path}; write {mask_suffix(like)}")
    else:
        _write_png(path, mask, palette, tags or {})


def write_probability(
    path: Path,
    probability: npt.NDArray[np.float32],
    *,
    like: Raster | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write class probabilities (C, H, W) as a tiled float32 GeoTIFF; NaN = nodata, set where ``like`` is not valid.

    Raises:
        ValueError: Another size than the input's, or a valid pixel without a finite probability.
    """
    _check_frame(path, probability.shape[1:], like)
    bands = np.array(probability, dtype=np.float32)
    valid = np.ones(bands.shape[1:], bool) if like is None else like.valid
    if not np.isfinite(bands[:, valid]).all():
        raise ValueError(f"{path}: some probabilities are NaN or infinite; try --amp off, or check the checkpoint")
    bands[:, ~valid] = np.nan
    _write_geotiff(path, bands, like, tags or {})
