"""Opening rasters: known formats by content alone, claims against bytes, validity of alpha together with nodata."""

import http.server
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from common.images.gdal import Bands, open_dataset, open_raster, pixel_count, quiet, read_bands, sample_bands
from common.images.rasters import read_label, read_raster

MOSAIC = """<VRTDataset rasterXSize="8" rasterYSize="6"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def save(path, bands, **options):
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype.name}
    profile |= {"crs": "EPSG:25830", "transform": Affine(0.25, 0.0, 430000.0, 0.0, -0.25, 4580000.0)}
    with rasterio.open(path, "w", **profile, **options) as file:
        file.write(bands)
    return path


def grey(path, seed=0):
    return save(path, np.random.default_rng(seed).integers(1, 255, (1, 6, 8), np.uint8))


# Formats


@pytest.fixture
def web():
    """A web server that remembers what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["x.tif", "x.png", "x.jpg", "x.jp2", "x.bmp", "x.webp"])
def test_a_mosaic_under_the_name_of_a_picture_reaches_for_nothing(tmp_path, web, name):
    address, asked = web
    secret = grey(tmp_path / "secret.tif")
    for source in (f"/vsicurl/{address}/secret.tif", str(secret)):
        (tmp_path / name).write_text(MOSAIC.format(relative=0, source=source))
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image"):
            read_raster(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image"):
            open_dataset(tmp_path / name)
    assert not asked


def test_a_web_service_under_the_name_of_a_raster_is_not_asked(tmp_path, web):
    address, asked = web
    service = f"""<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>
    <DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0
    </LowerRightY><TileLevel>1</TileLevel></DataWindow><BlockSizeX>8</BlockSizeX><BlockSizeY>8</BlockSizeY>
    </GDAL_WMS>"""
    (tmp_path / "x.tif").write_text(service)
    with pytest.raises(ValueError, match=r"x\.tif: cannot be read as an image"):
        read_raster(tmp_path / "x.tif")
    assert not asked


def test_nothing_is_asked_of_the_network_even_where_a_file_names_it(tmp_path, web):
    address, asked = web
    with rasterio.Env(CPL_VSIL_CURL_ALLOWED_FILENAME="none"), pytest.raises(RasterioIOError):
        rasterio.open(f"/vsicurl/{address}/secret.tif")
    assert not asked
    grey(tmp_path / "x.tif")
    overviews = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{address}/o.tif</MDI></Metadata>'
    (tmp_path / "x.tif.aux.xml").write_text(f"<PAMDataset>{overviews}</PAMDataset>")
    with pytest.raises(ValueError, match=r"x\.tif: has its overviews elsewhere"):
        read_raster(tmp_path / "x.tif")
    assert not asked


@pytest.mark.parametrize("relative", [0, 1])
def test_a_mosaic_of_files_beside_it_is_read(tmp_path, relative):
    source = grey(tmp_path / "a.tif")
    mosaic = tmp_path / "m.vrt"
    mosaic.write_text(MOSAIC.format(relative=relative, source="a.tif" if relative else source))
    np.testing.assert_array_equal(read_raster(mosaic).data, read_raster(source).data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MOSAIC.format(relative=1, source="../outside.tif"), "its source ../outside.tif is no raster file beside it"),
        (MOSAIC.format(relative=0, source="/vsicurl/http://127.0.0.1:9/a.tif"), "is no raster file beside it"),
        (MOSAIC.format(relative=1, source="link.tif"), "its source link.tif is no raster file beside it"),
        (MOSAIC.format(relative=1, source="pipe.vrt"), "is no raster file beside it"),
        (MOSAIC.format(relative=1, source="text.tif"), "text.tif. not recognized"),
        (MOSAIC.format(relative=1, source="a.tif").replace("<SourceB", "<OpenOptions/><SourceB"), "OpenOptions"),
        (MOSAIC.format(relative=1, source="a.tif").replace("Dataset ", 'Dataset subClass="VRTWarpedDataset" ', 1),
         "VRTWarpedDataset"),
        ("<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]>" + MOSAIC.format(relative=1, source="a.tif"),
         "declares entities"),
        ("<VRTDataset>", "is no mosaic"),
    ],
)  # fmt: skip
def test_a_mosaic_that_reaches_elsewhere_is_refused(tmp_path, text, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    grey(folder / "a.tif")
    outside = grey(tmp_path / "outside.tif")
    (folder / "link.tif").symlink_to(outside)
    (folder / "pipe.vrt").write_text(MOSAIC.format(relative=0, source=outside))
    (folder / "text.tif").write_text(MOSAIC.format(relative=0, source=outside))
    (folder / "m.vrt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_raster(folder / "m.vrt")


@pytest.mark.parametrize("side", ["x.tif.msk", "x.tif.aux.xml", "x.aux", "x.tfw", "x.TIFW", "x.wld", "x_rpc.txt"])
def test_a_pipe_beside_an_image_is_not_waited_for(tmp_path, side):
    path = grey(tmp_path / "x.tif")
    os.mkfifo(tmp_path / side)
    with pytest.raises(ValueError, match=rf"x\.tif: {side} beside it is no regular file; remove it"):
        open_dataset(path)


@pytest.mark.parametrize("world", ["1e308 0 0 -1e308 1e308 1e308", "1 1 1 1 5 5", "1e-300 0 0 -1e-300 0 0"])
def test_a_place_that_is_none_is_refused(tmp_path, world):
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (tmp_path / "x.pgw").write_text(world.replace(" ", "\n"))
    with pytest.raises(ValueError, match="no affine map"):
        open_dataset(path)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "x.tif")
    for read in (read_raster, open_dataset):
        with pytest.raises(ValueError, match=r"x\.tif: is no regular file"):
            read(tmp_path / "x.tif")


# Claims


def lying_tiff(path, side=2**31 - 1, bands=1):
    """A TIFF of some bytes whose header claims an enormous size."""
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, bands), (278, 4, 1, 1), (279, 4, 1, 8)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 16) + bytes(8) + struct.pack("<H", 9) + body + bytes(4))
    return path


def zeros_png(path, side):
    """A PNG of zeros, without ever having them in memory."""
    packer, chunks = zlib.compressobj(9), []
    for _ in range(side):
        chunks.append(packer.compress(bytes(side + 1)))
    data = b"".join([*chunks, packer.flush()])

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_a_header_that_claims_more_than_the_file_can_hold_is_damage(tmp_path):
    with pytest.raises(ValueError, match=r"lie\.tif: (claims 2147483647 x 2147483647 pixels|cannot be read)"):
        read_raster(lying_tiff(tmp_path / "lie.tif"))
    with pytest.raises(ValueError, match=r"lie\.tif: claims 200000 x 200000 pixels in \d+ bytes"):
        open_dataset(lying_tiff(tmp_path / "lie.tif", 200_000))
    with pytest.raises(ValueError, match=r"lie\.tif: claims 60000 bands"):
        open_dataset(lying_tiff(tmp_path / "lie.tif", 10, bands=60_000))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_picture_too_large_for_memory_is_refused_by_its_header(tmp_path, name, monkeypatch):
    path = zeros_png(tmp_path / "x.png", 1500)
    if name == "x.tif":
        path = save(tmp_path / name, np.zeros((1, 1500, 1500), np.uint8), compress="deflate")
    monkeypatch.setattr("common.images.pictures.LARGEST", 2_000_000)
    with pytest.raises(ValueError, match=rf"{name}: 1500 x 1500 pixels .* too many .*at most 2000000"):
        read_raster(path)


def test_a_picture_format_is_no_home_for_rasters_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr("common.images.gdal.LARGEST_PICTURE", 2_000_000)
    with pytest.raises(ValueError, match=r"1500 x 1500 pixels are too many for PNG \(at most 2000000\)"):
        open_dataset(zeros_png(tmp_path / "x.png", 1500))


def test_a_bmp_that_claims_a_thousand_million_rows_is_damage(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "x.bmp")
    data = bytearray((tmp_path / "x.bmp").read_bytes())
    data[22:26] = struct.pack("<i", 1_200_000_000)
    (tmp_path / "x.bmp").write_bytes(data)
    for read in (read_raster, open_dataset):
        with pytest.raises(ValueError, match=r"x\.bmp: "):
            read(tmp_path / "x.bmp")


# Content


@pytest.mark.parametrize("kind", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path, kind):
    options = {"driver": "GTiff", "count": 1, "height": 4, "width": 4, "dtype": kind}
    with quiet(), rasterio.open(tmp_path / "x.tif", "w", **options):
        pass
    for read in (read_label, read_raster, open_dataset):
        with pytest.raises(ValueError, match=rf"x\.tif: has {kind} values"):
            read(tmp_path / "x.tif")


def test_pages_of_different_sizes_are_refused_by_name(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(np.zeros((20, 30), np.uint8))
        file.write(np.zeros((10, 15), np.uint8))
    with pytest.raises(ValueError, match=r"x\.tif: .*2 pictures of different kinds, \(20, 30\) and \(10, 15\)"):
        read_raster(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: holds 2 pages"), open_raster(tmp_path / "x.tif"):
        pass


def test_overviews_and_masks_are_no_pages(tmp_path):
    path = save(tmp_path / "x.tif", np.full((3, 64, 64), 7, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.eye(64, dtype=bool))
        file.build_overviews([2, 4])
    with open_raster(path):
        pass
    np.testing.assert_array_equal(read_raster(path).valid, np.eye(64, dtype=bool))


# Alpha together with nodata


def reference_valid(bands, alpha, nodata):
    valid = np.ones(bands.shape[1:], bool) if alpha is None else alpha > 0
    return valid if nodata is None else valid & (bands != nodata).any(axis=0)


@pytest.mark.parametrize("nodata", [None, 0, 7, 255])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_pixel_is_valid_where_it_is_opaque_and_some_band_differs_from_nodata(tmp_path, nodata, colors, alpha):
    rng = np.random.default_rng(0)
    bands = rng.choice([0, 7, 90, 255], (colors, 16, 24)).astype(np.uint8)
    bands[:, :4] = 255
    bands[:, 4:6] = 0
    opacity = rng.choice([0, 7, 255], (16, 24)).astype(np.uint8)
    every = np.concatenate([bands, opacity[None]]) if alpha else bands
    options = {"alpha": "YES"} if alpha else {}
    path = save(tmp_path / "x.tif", every, nodata=nodata, photometric="RGB" if colors == 3 else "MINISBLACK", **options)
    expected = reference_valid(bands, opacity if alpha else None, nodata)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.data, bands)
    np.testing.assert_array_equal(raster.valid, expected)
    with open_raster(path) as file:
        data, valid = read_bands(file, (2, 9), (3, 11), bands=Bands.of(file), count=1)
        np.testing.assert_array_equal(data, bands[:1, 2:9, 3:11])
        np.testing.assert_array_equal(valid, expected[2:9, 3:11])
        assert sample_bands(file)[1].sum() == expected.sum()


# White is zero


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_where_white_is_zero_values_are_turned_round(tmp_path, kind):
    most = np.iinfo(kind).max
    values = np.random.default_rng(0).integers(0, most, (5, 7), kind)
    tifffile.imwrite(tmp_path / "x.tif", most - values, photometric="miniswhite")
    np.testing.assert_array_equal(read_raster(tmp_path / "x.tif").data, values[None])
    np.testing.assert_array_equal(read_label(tmp_path / "x.tif"), values)
    np.testing.assert_array_equal(read_label(tmp_path / "x.tif", colors=False), most - values)


def test_one_bit_where_white_is_zero(tmp_path):
    shape = np.eye(9, dtype=bool)
    Image.fromarray(~shape).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as seen:
        np.testing.assert_array_equal(read_label(tmp_path / "x.tif"), np.asarray(seen))


# Damage


def specimens(folder):
    """Small valid files of every format."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 24, 32), np.uint8)
    yield save(folder / "a.tif", pixels)
    yield save(folder / "b.tif", pixels.astype(np.float32), compress="deflate", predictor=3, nodata=7)
    yield save(folder / "c.tif", rng.integers(0, 9, (1, 64, 64), np.uint16), compress="lzw", tiled=True,
               blockxsize=16, blockysize=16)  # fmt: skip
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    for name, options in (("d.png", {}), ("e.jpg", {"exif": exif}), ("f.webp", {}), ("g.bmp", {}), ("h.jp2", {})):
        picture.save(folder / name, **options)
        yield folder / name
    tifffile.imwrite(folder / "i.tif", pixels, photometric="rgb", metadata={"axes": "CYX"}, extratags=[])
    yield folder / "i.tif"


def test_damaged_bytes_end_in_a_line_that_names_the_file(tmp_path):
    (tmp_path / "whole").mkdir()
    rng, outcomes = np.random.default_rng(7), {"read": 0, "refused": 0}
    for path in specimens(tmp_path / "whole"):
        data = path.read_bytes()
        for number in range(30):
            spoiled = bytearray(data[: rng.integers(1, len(data))] if number % 5 == 0 else data)
            header = rng.random() < 0.5
            for _ in range(rng.integers(1, 12)):
                spoiled[rng.integers(0, min(len(spoiled), 300) if header else len(spoiled))] = rng.integers(0, 256)
            target = tmp_path / path.name
            target.write_bytes(spoiled)
            for read in (read_raster, read_label, pixel_count, lambda path: open_dataset(path).close()):
                try:
                    read(target)
                    outcomes["read"] += 1
                except ValueError as error:
                    assert path.name in str(error)
                    outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


def test_remarks_are_held_back_until_the_last_thread_has_no_use_for_them(tmp_path):
    before, first, second = list(warnings.filters), quiet(), quiet()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    warnings.warn("no georeference", NotGeoreferencedWarning, stacklevel=1)  # an error, as all warnings are in tests
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before
    with pytest.raises(NotGeoreferencedWarning):
        warnings.warn("no georeference", NotGeoreferencedWarning, stacklevel=1)
