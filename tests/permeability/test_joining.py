"""Where an orthophoto and a mask meet: grids that almost fit, other coordinate systems, and what is read there."""

import numpy as np
import pytest
import shapely
from rasterio.crs import CRS as RasterCRS
from rasterio.warp import transform

from common.images.windows import Window
from permeability.data import open_grids
from permeability.joining import outline, rectangle, same_system
from tests.permeability.sheets import CRS, LEFT, TOP, join, one, patches, write_raster


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": TOP + 0.2}, ("0.40 pixels beside",)),
        ({"pixel": 0.501}, ("pixels are 0.501 x 0.501",)),
        ({"turn": 0.15}, ("turned",)),
    ],
)
def test_small_misfits_are_seen_in_both_directions(tmp_path, options, words):
    image, mask = patches(60, 80)
    photo = write_raster(tmp_path / "photo.tif", image)
    sites, problems, _ = join([photo], [write_raster(tmp_path / "mask.tif", mask, **options)])
    assert not sites and len(problems) == 1 and all(word in problems[0] for word in words)


@pytest.mark.parametrize("options", [{"left": LEFT + 0.02}, {"top": TOP - 0.02}, {"pixel": 0.5002}, {"turn": 0.02}])
def test_misfits_of_a_tenth_of_a_pixel_are_none(tmp_path, options):
    site, _ = one(tmp_path, patches(60, 80)[1], **options)
    assert site.offset == (0, 0) and np.array_equal(site.read_classes(Window(0, 0, 60, 80)), patches(60, 80)[1])


def test_a_warped_mask_reaches_all_pixels_whose_centers_it_covers(tmp_path):
    site, _ = one(tmp_path, np.ones((40, 50), np.uint8), left=LEFT + 5.2, top=TOP - 5.2, how={"reproject": True})
    classes = site.read_classes(Window(0, 0, 60, 80))
    inside = np.argwhere(classes == 1)
    assert inside.min(axis=0).tolist() == [10, 10] and inside.max(axis=0).tolist() == [49, 59]
    area = site.window
    assert (area.row, area.col, area.height, area.width) == (10, 10, 40, 50)


def test_coordinate_systems_in_other_words_are_the_same():
    ours, words = RasterCRS.from_string(CRS), RasterCRS.from_string("+proj=utm +zone=30 +ellps=GRS80 +units=m +no_defs")
    assert ours != words and same_system(ours, words) and same_system(words, ours)
    assert not same_system(ours, RasterCRS.from_epsg(25829))


def raster_grid(path, crs, left, top, pixel, **options):
    return open_grids([write_raster(path, np.zeros((50, 100), np.uint8), crs=crs, left=left, top=top, pixel=pixel,
                                    **options)], [])[0]  # fmt: skip


def test_outlines_bend_between_coordinate_systems(tmp_path):
    degrees = raster_grid(tmp_path / "a.tif", "EPSG:4326", -6.0, 42.0, 0.06)  # 6 degrees wide
    points = outline(degrees, RasterCRS.from_string(CRS))
    x = np.linspace(-6, 0, 501)
    _, lower = transform("EPSG:4326", CRS, x, np.full_like(x, 39.0))
    assert points[:, 1].min() == pytest.approx(min(lower), abs=100)
    assert shapely.Polygon(points).is_valid and len(points) >= 40


def test_a_place_that_a_coordinate_system_does_not_have_is_not_shared(tmp_path):
    nowhere = raster_grid(tmp_path / "a.tif", "EPSG:4326", LEFT, TOP, 0.5)  # meters taken for degrees
    here = raster_grid(tmp_path / "b.tif", CRS, LEFT, TOP, 0.5)
    assert rectangle(nowhere, here) is None and rectangle(here, here) is not None
    with pytest.raises(ValueError, match=r"no orthophoto shows.*a\.tif.*b\.tif.*check the coordinate system"):
        join([here.path], [nowhere.path])


@pytest.mark.parametrize(("nodata", "blank"), [(None, 255), (7, 7), (0, 255)])
def test_a_finer_mask_is_warped_by_nearest_neighbor(tmp_path, nodata, blank):
    mask = np.random.default_rng(0).integers(0, 2, (300, 400)).astype(np.uint8)
    mask[:100, :100] = blank
    site, _ = one(tmp_path, mask, pixel=0.1, nodata=nodata, how={"reproject": True})
    expected = mask[2::5, 2::5].copy()
    expected[:20, :20] = 255
    assert np.array_equal(site.read_classes(Window(0, 0, 60, 80)), expected)


def test_holes_of_float_images_are_ignored(tmp_path):
    image = (patches(60, 80)[0] / 255).astype(np.float32)
    image[1, :, :10] = np.nan
    image[:, :, 10:25] = -1
    site, _ = one(tmp_path, np.ones((60, 80), np.uint8), image=image, photo_options={"nodata": -1})
    shown, classes = site.read(Window(0, 0, 60, 80))
    assert (classes[:, :25] == 255).all() and (classes[:, 25:] == 1).all()
    assert (shown[:, :, :25] == 0).all() and np.allclose(shown[:, :, 25:], image[:, :, 25:])
    site, _ = one(tmp_path / "other", np.ones((60, 80), np.uint8), image=np.where(image == -1, 0.5, image))
    classes = site.read(Window(0, 0, 60, 80))[1]
    assert (classes[:, :10] == 255).all() and (classes[:, 10:] == 1).all()


def test_grey_with_alpha_is_grey(tmp_path):
    grey = patches(60, 80)[0][0]
    image = np.stack([grey, np.where(np.arange(80) < 10, 0, 255).astype(np.uint8)[None].repeat(60, 0)])
    site, _ = one(tmp_path, np.ones((60, 80), np.uint8), image=image, photo_options={"ALPHA": "YES"})
    shown, classes = site.read(Window(0, 0, 60, 80))
    assert (shown[:, :, 10:] == grey[:, 10:]).all() and (classes[:, :10] == 255).all()


def test_ground_of_another_sheet_is_ignored_in_every_window(tmp_path):
    image, mask = patches(60, 80)
    photos = [write_raster(tmp_path / f"{name}.tif", image, left=LEFT + 20 * k) for k, name in enumerate("ab")]
    wide = np.kron(np.ones((1, 2), np.uint8), mask)[:, :120]
    (_, site), _, _ = join(photos, [write_raster(tmp_path / "wide.tif", wide)])
    whole = site.read_classes(Window(0, 0, 60, 80))
    assert (whole[:, :40] == 255).all() and np.array_equal(whole[:, 40:], wide[:, 80:])
    for row, col in ((10, 30), (0, 45), (-5, -10)):
        window = Window(row, col, 30, 30)
        rows, columns = np.mgrid[row : row + 30, col : col + 30]
        expected = np.where((rows >= 0) & (columns >= 0), whole[np.maximum(rows, 0), np.maximum(columns, 0)], 255)
        assert np.array_equal(site.read(window)[1], expected)


def test_sheets_of_one_stem_give_sites_of_their_own(tmp_path):
    image, mask = patches(60, 80)
    photos = [write_raster(tmp_path / f"a.{end}", image, left=LEFT + 20 * k) for k, end in enumerate(("tif", "tiff"))]
    wide = np.kron(np.ones((1, 2), np.uint8), mask)[:, :120]
    sites, _, _ = join(photos, [write_raster(tmp_path / "wide.tif", wide)])
    assert [site.id for site in sites] == ["wide@a.tif", "wide@a.tiff"]


def test_alpha_is_not_taken_for_a_fourth_band(tmp_path):
    image = np.concatenate([patches(60, 80)[0], np.full((1, 60, 80), 255, np.uint8)])
    options = {"photometric": "RGB", "ALPHA": "YES"}
    site, _ = one(tmp_path, np.ones((60, 80), np.uint8), image=image, photo_options=options)
    with pytest.raises(ValueError, match="3 bands"):
        site.read(Window(0, 0, 9, 9), channels=4)
