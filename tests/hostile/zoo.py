"""Odd picture files, small and quickly made: formats, lies, bombs, names. Georeferences are in `zoo_places`.

Each maker writes one file. ``GOOD`` must be predicted, ``BAD`` must be named as failed and leave nothing, of ``ANY``
either is right.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.hostile.kit import scene, write_geotiff, write_picture

GOOD, BAD, ANY = "good", "bad", "any"
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Specimen:
    """One odd file."""

    name: str
    make: Make
    expect: str = ANY


RGB, MASK = scene()
GREY = np.ascontiguousarray(RGB[..., 0])
DEEP = RGB.astype(np.uint16) * 257
ALPHA = np.dstack([RGB, np.where(MASK, 0, 255).astype(np.uint8)])


def encoded(format: str, array: NDArray[np.generic] = RGB, **options: object) -> bytes:
    """A picture as Pillow writes it."""
    target = io.BytesIO()
    Image.fromarray(array).save(target, format, **options)
    return target.getvalue()


def raw(content: bytes | str) -> Make:
    """Write bytes as they are."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(array: NDArray[np.generic] = RGB, **options: object) -> Make:
    """Write with Pillow."""
    return lambda path: write_picture(path, array, **options)


def tiff(array: NDArray[np.generic] = RGB, **options: object) -> Make:
    """Write with tifffile."""
    return lambda path: tifffile.imwrite(path, array, **options)


def geotiff(array: NDArray[np.generic] = RGB, **options: object) -> Make:
    """Write with GDAL, georeferenced."""
    return lambda path: write_geotiff(path, array, **options)


def converted(mode: str, **options: object) -> Make:
    """Write the scene in another mode of Pillow's."""
    return lambda path: Image.fromarray(RGB).convert(mode).save(path, **options)


# Lies and bombs


def png_of(width: int, height: int, data: bytes, depth: int = 8, color: int = 0) -> bytes:
    """A PNG with a header of one's own."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Zeros, compressed without having them in memory."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join(parts) + packer.compress(bytes(count & ((1 << 20) - 1))) + packer.flush()


def bmp_of(height: int) -> bytes:
    """A BMP that claims more rows than it has."""
    content = bytearray(encoded("BMP"))
    content[22:26] = struct.pack("<i", height)
    return bytes(content)


def tiff_tags(tags: dict[int, tuple[int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of tags with one value each: number -> (type, value)."""
    entries = sorted(tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    body = struct.pack(order + "H", len(entries))
    for number, (kind, value) in entries:
        body += struct.pack(order + "HHI", number, kind, 1)
        body += struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return head + body + bytes(4) + data


def lying_tiff(width: int, height: int, *, offset: int = 200, size: int = 100, **more: int) -> bytes:
    """A grey TIFF of one strip whose header says what it likes."""
    tags = {
        256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, offset), 277: (3, 1),
        278: (4, height), 279: (4, size),
    }  # fmt: skip
    return tiff_tags(tags | {int(k[1:]): (4, v) for k, v in more.items()}, bytes(200))


def looping_tiff() -> bytes:
    """A TIFF whose directory is its own successor."""
    content = bytearray(lying_tiff(10, 10))
    end = 8 + 2 + 12 * struct.unpack("<H", content[8:10])[0]
    content[end : end + 4] = struct.pack("<I", 8)
    return bytes(content)


def cut(make: Make, share: float) -> Make:
    """The first part of a file."""

    def write(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def patched(make: Make, find: bytes, replace: bytes) -> Make:
    """A file with some of its bytes replaced."""

    def write(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        assert find in content
        path.write_bytes(content.replace(find, replace))

    return write


def sparse(path: Path) -> None:
    """A GeoTIFF none of whose tiles was ever written."""
    profile = {"driver": "GTiff", "width": 300, "height": 200, "count": 3, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(
        path, "w", **profile, tiled=True, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 0, 0, -1, 0)
    ):
        pass


def exif(content: bytes) -> Make:
    """A JPEG with an Exif segment of one's own."""
    return picture(exif=b"Exif\0\0" + content)


def orientation(value: int) -> bytes:
    """Exif that says how the camera was held."""
    return b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HH", value, 0) + bytes(4)


def pages(*arrays: NDArray[np.generic], **options: object) -> Make:
    """A TIFF of several pictures."""

    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as file:
            for array in arrays:
                file.write(array, **options)

    return write


def renamed(make: Make) -> Make:
    """Write under a plain name first: libraries cannot write every name that a file may have."""

    def write(path: Path) -> None:
        plain = path.with_name(f"plain{path.suffix}")
        make(plain)
        plain.rename(path)

    return write


FORMATS = (
    Specimen("plain.png", picture(), GOOD),
    Specimen("one_bit.png", converted("1"), GOOD),
    Specimen("grey.png", picture(GREY), GOOD),
    Specimen("grey16.png", picture(DEEP[..., 0]), GOOD),
    Specimen("rgb16.png", raw(imagecodecs.png_encode(DEEP)), GOOD),
    Specimen("palette.png", converted("P"), GOOD),
    Specimen("palette_transparent.png", converted("P", transparency=3), GOOD),
    Specimen("rgba.png", picture(ALPHA), GOOD),
    Specimen("grey_alpha.png", converted("LA"), GOOD),
    Specimen("transparent.png", picture(np.dstack([RGB, np.zeros_like(GREY)])), GOOD),
    Specimen("interlaced.png", raw(png_of(7, 7, zlib.compress(bytes(8 * 7)))[:28] + b"\x01" + bytes(60)), BAD),
    Specimen("apng.png", lambda p: Image.fromarray(RGB).save(p, save_all=True, append_images=[Image.fromarray(GREY)])),
    Specimen("rgb.jpg", picture(), GOOD),
    Specimen("cmyk.jpg", converted("CMYK"), GOOD),
    Specimen("grey.jpeg", picture(GREY), GOOD),
    Specimen("progressive.jpg", picture(progressive=True), GOOD),
    *(Specimen(f"turned{n}.jpg", exif(orientation(n)), GOOD) for n in (1, 3, 6, 8, 9)),
    Specimen("exif_cut.jpg", exif(orientation(6)[:-7]), ANY),
    Specimen("exif_text.jpg", exif(b"II*\0\x08\0\0\0\xff\xff" + b"A" * 40), ANY),
    Specimen("exif_empty.jpg", exif(b""), ANY),
    Specimen("exif_wild.jpg", exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\xff\xff\xff\xff\xff\xff\xff\xff"), ANY),
    Specimen("exif.png", picture(exif=b"Exif\0\0garbage"), ANY),
    Specimen("cut.jpg", cut(picture(), 0.5), BAD),
    Specimen("cut.png", cut(picture(), 0.5), BAD),
    Specimen("rgb.bmp", picture(), GOOD),
    Specimen("rows.bmp", raw(bmp_of(1_200_000_000)), BAD),
    Specimen("negative_rows.bmp", raw(bmp_of(-40)), ANY),
    Specimen("no_rows.bmp", raw(bmp_of(0)), BAD),
    Specimen("least.bmp", raw(bmp_of(-(2**31))), BAD),
    Specimen("rgb.webp", picture(), GOOD),
    Specimen("rgba.webp", picture(ALPHA, lossless=True), GOOD),
    Specimen("cut.webp", cut(picture(), 0.6), BAD),
    Specimen("gif_called.png", raw(encoded("GIF")), ANY),
    Specimen("jpeg_called.png", raw(encoded("JPEG")), ANY),
    Specimen("png_called.tif", raw(encoded("PNG")), ANY),
    Specimen("tiff_called.png", raw(encoded("TIFF")), ANY),
    Specimen("pdf_called.png", raw(encoded("PDF")), BAD),
    Specimen("eps_called.png", raw(encoded("EPS")), BAD),
    Specimen("text.png", raw("not a picture\n"), BAD),
    Specimen("html.tif", raw("<html><body>404 Not Found</body></html>"), BAD),
    Specimen("empty.png", raw(b""), BAD),
    Specimen("empty.tif", raw(b""), BAD),
    Specimen("one_pixel.png", picture(RGB[:1, :1]), GOOD),
    Specimen("line.png", picture(RGB[:1]), GOOD),
    Specimen("column.png", picture(RGB[:, :1]), GOOD),
    Specimen("long_line.png", picture(np.zeros((1, 20_000, 3), np.uint8)), GOOD),
    Specimen("no_pixels.png", raw(png_of(0, 0, b"")), BAD),
    Specimen("lying.png", raw(png_of(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100)))), BAD),
    Specimen("bomb.png", raw(png_of(60_000, 60_000, zeros(60_000 * 7_501), 1)), BAD),
    Specimen("text_bomb.png", raw(encoded("PNG")[:33] + b"\xff\xff\xff\xfftEXt" + encoded("PNG")[33:]), ANY),
    Specimen("link.png", lambda path: path.symlink_to("/etc/hostname"), BAD),
    Specimen("noise.jp2", raw(bytes(range(256)) * 20), BAD),
    Specimen("rgb.jp2", lambda path: Image.fromarray(RGB).save(path), GOOD),
    Specimen("cut.jp2", cut(lambda path: Image.fromarray(RGB).save(path), 0.5), ANY),
)
TIFFS = (
    Specimen("plain.tif", tiff(photometric="rgb"), GOOD),
    Specimen("tiled.tif", tiff(photometric="rgb", tile=(16, 16)), GOOD),
    Specimen("strips.tif", tiff(photometric="rgb", rowsperstrip=3), GOOD),
    # tifffile writes three frames of a film in the same way: hela_nuclei asks for --axes
    Specimen("planar.tif", tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"), ANY),
    Specimen("planar_gdal.tif", geotiff(interleave="band", photometric="rgb"), GOOD),
    Specimen("big.tif", tiff(photometric="rgb", bigtiff=True), GOOD),
    Specimen("big_endian.tif", tiff(DEEP, photometric="rgb", byteorder=">"), GOOD),
    Specimen("miniswhite.tif", tiff(GREY, photometric="miniswhite"), GOOD),
    Specimen("palette.tif", lambda p: Image.fromarray(RGB).convert("P").save(p), GOOD),
    Specimen("cmyk.tif", lambda p: Image.fromarray(RGB).convert("CMYK").save(p), ANY),
    Specimen("float16.tif", tiff((RGB / 255).astype(np.float16), photometric="rgb"), ANY),
    Specimen("float32.tif", tiff((RGB / 255).astype(np.float32), photometric="rgb"), GOOD),
    Specimen("float64.tif", tiff(RGB / 255, photometric="rgb"), GOOD),
    Specimen("infinite.tif", tiff(np.where(RGB > 120, np.inf, RGB / 255).astype(np.float32), photometric="rgb"), GOOD),
    Specimen("nan.tif", tiff(np.full(RGB.shape, np.nan, np.float32), photometric="rgb"), GOOD),
    Specimen("huge.tif", tiff((RGB * 1e300).astype(np.float64), photometric="rgb"), ANY),
    Specimen("int8.tif", tiff(RGB.astype(np.int8), photometric="rgb"), ANY),
    Specimen("int16.tif", tiff(RGB.astype(np.int16) - 50, photometric="rgb"), GOOD),
    Specimen("int32.tif", tiff(RGB.astype(np.int32) + 2**30, photometric="rgb"), GOOD),
    Specimen("uint32.tif", tiff(RGB.astype(np.uint32) * 16_000_000, photometric="rgb"), GOOD),
    Specimen("uint64.tif", tiff(RGB.astype(np.uint64) << 50, photometric="rgb"), ANY),
    Specimen("complex.tif", tiff(GREY.astype(np.complex64)), BAD),
    Specimen("twelve_bit.tif", tiff(DEEP[..., 0] >> 4, bitspersample=12, compression="none"), ANY),
    Specimen("two_bands.tif", tiff(RGB[..., :2], photometric="minisblack", planarconfig="contig"), ANY),
    Specimen("five_bands.tif", geotiff(np.dstack([RGB, RGB[..., :2]])), ANY),
    Specimen("alpha.tif", tiff(ALPHA, photometric="rgb", extrasamples=["unassalpha"]), GOOD),
    Specimen("jpeg_in.tif", tiff(photometric="ycbcr", compression="jpeg"), GOOD),
    Specimen("zstd_in.tif", tiff(photometric="rgb", compression="zstd"), ANY),
    Specimen("jpegxl_in.tif", tiff(photometric="rgb", compression="jpegxl"), ANY),
    Specimen("pages_equal.tif", pages(RGB, RGB, photometric="rgb"), ANY),
    Specimen("pages_unequal.tif", pages(RGB, RGB[:20], photometric="rgb"), BAD),
    Specimen("pages_many.tif", pages(*[GREY[:8, :8]] * 300), ANY),
    Specimen("thumbnail.tif", pages(RGB, RGB[::2, ::2], photometric="rgb", subfiletype=1), ANY),
    Specimen("sparse.tif", sparse, GOOD),
    Specimen("lying.tif", raw(lying_tiff(2**31 - 1, 2**31 - 1)), BAD),
    Specimen("lying_wide.tif", raw(lying_tiff(60_000, 60_000)), BAD),
    Specimen("offset.tif", raw(lying_tiff(10, 10, offset=2**31)), BAD),
    Specimen("no_width.tif", raw(lying_tiff(0, 10)), BAD),
    Specimen("planes.tif", raw(lying_tiff(10, 10, t277=60_000)), BAD),
    Specimen("looping.tif", raw(looping_tiff()), ANY),
    Specimen("no_tags.tif", raw(tiff_tags({})), BAD),
    Specimen("header.tif", raw(b"II*\0"), BAD),
    Specimen("header_big.tif", raw(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63)), BAD),
    Specimen("cut.tif", cut(tiff(photometric="rgb"), 0.5), BAD),
    Specimen("cut_tiled.tif", cut(tiff(photometric="rgb", tile=(16, 16)), 0.5), BAD),
    Specimen("cut_deflate.tif", cut(geotiff(compress="deflate", tiled=True, blockxsize=16, blockysize=16), 0.7), BAD),
    Specimen("named_pipe.tif", os.mkfifo, BAD),
    Specimen("device.tif", lambda path: path.symlink_to("/dev/zero"), BAD),
    Specimen("closed.tif", lambda path: (geotiff()(path), path.chmod(0)), ANY),
    Specimen("upper.TIF", geotiff(), GOOD),
)
LINKS = (
    Specimen("folder.tif", lambda path: path.mkdir()),
    Specimen("dangling.tif", lambda path: path.symlink_to("nowhere.tif")),
    Specimen("loop_link.tif", lambda path: path.symlink_to(path.name)),
)
"""Only inside of a folder that is named: named directly they are missing files."""
NAMES = tuple(
    Specimen(
        name,
        renamed(geotiff() if name.endswith("tif") else picture()),
        ANY if len(name) > 250 or "\udcff" in name else GOOD,  # GDAL takes names of UTF-8 alone
    )
    for name in (
        "with space.tif", "ünï cödé é.tif", "a!b.tif", "a;b.tif", "semi;colon|pipe&and.tif", "[final] ortho.tif",
        "(x).tif", "$x.tif", "${HOME}.tif", "`id`.tif", "a,b.tif", "a:b.tif", "a=b.tif", "a?b.tif", "a#b.tif",
        "a%20b.tif",
        "a%d.tif", "{0}.tif", "*.tif", "'quote'.tif", '"double".tif', "back\\slash.tif", "line\nbreak.tif",
        "tab\there.tif",
        "bell\x07.tif", "not-utf8-\udcff\udcfe.tif", "-dash.tif", "--threshold.tif", ".hidden.tif", "two.dots.x.tif",
        "trailing .tif", "a.tif.png", "漢字.tif", "א.tif", "e\u0301.tif", "\u00e9.tif", "😀.png", "GTIFF_DIR:1:x.tif",
        "select.tif", "layer'); DROP TABLE x;--.tif", "n" * 200 + ".tif", "u" * 251 + ".tif", "x_mask.tif",
        "y_prob.tif", "é" * 120 + ".png", "aux.tif", "~.tif", "vsimem.tif",
    )
)  # fmt: skip
