import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from common.windows import Window
from permeability.data import Join, Mask, audit, find_files, join_sites, look_at, plan_tiles, split_sites, thin
from permeability.labels import to_classes
from permeability.site import open_source
from tests.permeability.sheets import CRS, LEFT, TOP, patches, write_pair, write_raster


def join(photos, masks, **how):
    return join_sites(photos, [mask if isinstance(mask, Mask) else Mask(mask) for mask in masks], Join(**how))


def one(tmp_path, mask, *, image=None, how=None, photo_options=None, **options):
    """The only site of a sheet of 60 x 80 and a mask."""
    image = patches(60, 80)[0] if image is None else image
    photo = write_raster(tmp_path / "photo.tif", image, **(photo_options or {}))
    path = write_raster(tmp_path / "mask.tif", mask, **options)
    sites, problems, _ = join([photo], [path], **(how or {}))
    assert not problems, problems
    (site,) = sites
    return site, image


def test_files_join_by_place_and_not_by_name(tmp_path):
    for number, part in enumerate(("train", "val", "test")):
        write_pair(tmp_path, f"PNOA_{9 - number}", part, number)
    sites, problems, notes = join_sites(*find_files(tmp_path, None, None), Join())
    assert not problems and not notes
    pairs = {site.id: site.image.path.stem for site in sites}
    assert pairs == {"train/suelo0": "PNOA_9", "val/suelo1": "PNOA_8", "test/suelo2": "PNOA_7"}


@settings(deadline=None, max_examples=20)
@given(
    down=st.integers(-30, 30), right=st.integers(-30, 30), height=st.integers(31, 70), width=st.integers(31, 70),
    row=st.integers(-20, 70), col=st.integers(-20, 90), side=st.integers(1, 40),
)  # fmt: skip
def test_a_window_shows_image_and_mask_of_the_same_ground(tmp_path_factory, down, right, height, width, row, col, side):
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (height, width)).astype(np.uint8)
    site, image = one(folder, truth, left=LEFT + right / 2, top=TOP - down / 2)
    whole = np.full((200, 200), 255, np.uint8)  # the plane around the sheet, whose corner is at (60, 60)
    whole[60 + down : 60 + down + height, 60 + right : 60 + right + width] = truth
    plane = np.zeros((3, 200, 200), np.uint8)
    plane[:, 60:120, 60:140] = image
    inside = np.zeros((200, 200), bool)
    inside[60:120, 60:140] = True
    found, classes = site.read(Window(row, col, side, side))
    here = (slice(60 + row, 60 + row + side), slice(60 + col, 60 + col + side))
    assert np.array_equal(found, plane[:, *here])
    assert np.array_equal(classes, np.where(inside[here], whole[here], 255))
    area = site.window
    assert (area.row, area.col) == (max(down, 0), max(right, 0))
    assert (area.height, area.width) == (min(60, down + height) - area.row, min(80, right + width) - area.col)


def test_nodata_of_the_orthophoto_is_ignored(tmp_path):
    image = patches(60, 80)[0]
    image[:, :20] = 7
    site, _ = one(tmp_path, np.ones((60, 80), np.uint8), image=image, photo_options={"nodata": 7})
    shown, classes = site.read(Window(0, 0, 60, 80))
    assert (classes[:20] == 255).all() and (classes[20:] == 1).all() and (shown[:, :20] == 0).all()


def test_alpha_is_no_band_and_its_holes_are_ignored(tmp_path):
    image = np.concatenate([patches(60, 80)[0], np.full((1, 60, 80), 255, np.uint8)])
    image[3, :, :10] = 0
    options = {"photo_options": {"photometric": "RGB", "ALPHA": "YES"}}
    site, _ = one(tmp_path, np.ones((60, 80), np.uint8), image=image, **options)
    shown, classes = site.read(Window(0, 0, 60, 80))
    assert shown.shape == (3, 60, 80) and (classes[:, :10] == 255).all() and (classes[:, 10:] == 1).all()


def test_sixteen_bits_grey_and_extra_bands(tmp_path):
    deep = patches(60, 80)[0].astype(np.uint16) * 257
    site, _ = one(tmp_path / "deep", np.ones((60, 80), np.uint8), image=deep)
    assert np.allclose(site.read(Window(5, 5, 9, 9))[0], deep[:, 5:14, 5:14] / 65535, atol=1e-6)
    grey = patches(60, 80)[0][0]
    site, _ = one(tmp_path / "grey", np.ones((60, 80), np.uint8), image=grey)
    assert (site.read(Window(0, 0, 9, 9))[0] == grey[:9, :9]).all()
    with pytest.raises(ValueError, match=r"photo\.tif.*1 bands.*reads 4"):
        site.read(Window(0, 0, 9, 9), channels=4)
    four = np.concatenate([patches(60, 80)[0], grey[None]])
    options = {"photo_options": {"photometric": "MINISBLACK"}}
    site, _ = one(tmp_path / "four", np.ones((60, 80), np.uint8), image=four, **options)
    assert np.array_equal(site.read(Window(-3, 0, 9, 9), channels=4)[0][:, 3:], four[:, :6, :9])


def test_a_mask_in_another_coordinate_system_is_refused_or_warped(tmp_path):
    image, mask = patches(60, 80)
    photo = write_raster(tmp_path / "photo.tif", image)
    (west,), (north,) = transform(CRS, "EPSG:4326", [LEFT - 2], [TOP - 1])
    degrees = {"crs": "EPSG:4326", "left": west, "top": north, "pixel": 1.5e-6}
    path = write_raster(tmp_path / "mask.tif", np.kron(mask, np.ones((3, 3), np.uint8)), **degrees)
    _, problems, _ = join([photo], [path])
    assert len(problems) == 1
    for word in ("mask.tif", "photo.tif", "EPSG:4326", CRS, "--reproject"):
        assert word in problems[0]
    (site,), problems, _ = join([photo], [path], reproject=True)
    assert not problems
    expected = np.full((60, 80), 255, np.uint8)
    with rasterio.open(path) as source, rasterio.open(photo) as target:
        grids = {"dst_transform": target.transform, "dst_crs": target.crs}
        reproject(rasterio.band(source, 1), expected, **grids, src_nodata=255, dst_nodata=255, init_dest_nodata=True,
                  resampling=Resampling.nearest)  # fmt: skip
    known = expected != 255
    assert known.mean() > 0.2
    assert np.mean(site.read_classes(Window(0, 0, 60, 80)) == expected) > 0.995
    assert site.offset is None and site.window.height <= 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixel": 1.0}, ("pixels are 1 x 1", "0.5")),
        ({"left": LEFT + 0.2}, ("0.40 pixels beside",)),
        ({"turn": 5.0}, ("turned",)),
    ],
)
def test_a_mask_on_another_grid_is_refused_or_warped(tmp_path, options, words):
    image, mask = patches(60, 80)
    photo = write_raster(tmp_path / "photo.tif", image)
    path = write_raster(tmp_path / "mask.tif", mask, **options)
    sites, problems, _ = join([photo], [path])
    assert not sites and len(problems) == 1
    for word in (*words, "mask.tif", "photo.tif", "--reproject"):
        assert word in problems[0]
    (site,), problems, _ = join([photo], [path], reproject=True)
    classes = site.read_classes(Window(0, 0, 60, 80))
    assert not problems and set(np.unique(classes)) <= {0, 1, 255}
    if "pixel" in options:
        assert np.array_equal(classes, np.kron(mask, np.ones((2, 2), np.uint8))[:60, :80])


def test_a_resolution_makes_pixels_coarser(tmp_path):
    image, mask = patches(64, 96)
    site, _ = one(tmp_path, mask, image=image, how={"resolution": 1.0})
    assert (site.grid.height, site.grid.width, site.scale) == (32, 48, 0.5)
    shown, classes = site.read(Window(0, 0, 32, 48))
    means = image.reshape(3, 32, 2, 48, 2).mean(axis=(2, 4))
    assert abs(shown.astype(float) - means)[:, 2:-2, 2:-2].mean() < 5
    blocks = mask.reshape(32, 2, 48, 2)[:, 0, :, 0]  # patches are 16 pixels wide: a block has one class
    assert np.array_equal(classes, blocks)


def test_ground_that_two_orthophotos_show_counts_once(tmp_path):
    image, mask = patches(60, 80)
    photos = [write_raster(tmp_path / f"{name}.tif", image, left=LEFT + 20 * k) for k, name in enumerate("ab")]
    wide = np.kron(np.ones((1, 2), np.uint8), mask)[:, :120]
    sites, problems, _ = join(photos, [write_raster(tmp_path / "wide.tif", wide)])
    assert not problems and [site.id for site in sites] == ["wide@a", "wide@b"]
    found, _ = look_at(sites)
    assert sum(int(counts[:2].sum()) for counts in found.counts.values()) == 60 * 120
    assert {site.id.split("@")[0] for site in sites} == {"wide"}


def test_a_neighboring_sheet_on_a_grid_of_its_own_is_no_mistake(tmp_path):
    image, mask = patches(60, 80)
    other = write_raster(tmp_path / "a.tif", image, left=LEFT + 30.2)
    own = write_raster(tmp_path / "b.tif", image)
    path = write_raster(tmp_path / "mask.tif", mask)
    sites, problems, _ = join([other, own], [path])
    assert not problems and [site.image.path for site in sites] == [own]
    sites, problems, _ = join([other, own], [path], reproject=True)
    assert not problems and [site.id for site in sites] == ["mask@b", "mask@a"]
    found, _ = look_at(sites)
    assert found.counts["mask@b"][:2].sum() == 60 * 80 and found.counts["mask@a"][:2].sum() <= 60


def test_masks_elsewhere_and_lonely_files(tmp_path):
    image, mask = patches(60, 80)
    photo, far = write_raster(tmp_path / "photo.tif", image), write_raster(tmp_path / "far.tif", mask, left=100_000.0)
    with pytest.raises(ValueError, match=r"no orthophoto shows.*far\.tif.*photo\.tif"):
        join([photo], [far])
    near = write_raster(tmp_path / "near.tif", mask)
    sites, problems, notes = join([photo], [near, far])
    assert len(sites) == 1 and not problems and "far.tif" in notes[0]


def test_strange_values_and_damaged_files_are_named(tmp_path):
    image, mask = patches(60, 80)
    photo = write_raster(tmp_path / "photo.tif", image)
    strange = mask.copy()
    strange[3, 4:7] = 9
    sites, _, _ = join([photo], [write_raster(tmp_path / "strange.tif", strange)])
    _, problems = look_at(sites)
    assert len(problems) == 1 and "strange.tif" in problems[0] and "9 (3 pixels)" in problems[0]
    broken = write_raster(tmp_path / "broken.tif", np.random.default_rng(0).integers(0, 255, (3, 300, 300), np.uint8))
    broken.write_bytes(broken.read_bytes()[:-5000])
    sites, _, _ = join([broken], [write_raster(tmp_path / "good.tif", mask)])
    _, problems = look_at(sites)
    assert len(problems) == 1 and "broken.tif" in problems[0]
    (tmp_path / "text.tif").write_text("no raster")
    _, problems, _ = join([photo, tmp_path / "text.tif"], [tmp_path / "good.tif"])
    assert len(problems) == 1 and "text.tif" in problems[0]


def test_values_of_masks():
    values = np.array([[0, 1, 255, 7]])
    assert to_classes(values, 7).tolist() == [[0, 1, 255, 255]]
    assert to_classes(values[:, :3], 0).tolist() == [[0, 1, 255]]
    assert to_classes(np.array([[0.0, 1.0, np.nan]]), np.nan).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match=r"7 \(1 pixels\)"):
        to_classes(values, None)


def _sum(site):
    """What a process sees, and how many files it opened for that."""
    opened = open_source.cache_info().misses
    image, classes = site.read(Window(0, 0, 50, 50))
    return int(image.sum()), int(classes.sum()), open_source.cache_info().misses - opened


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sites_work_in_other_processes(easy, method):
    sites, _, _ = join_sites(*find_files(easy, None, None), Join())
    open_source.cache_clear()
    expected = _sum(sites[0])  # opens both files here: these handles must not be used there
    assert expected[2] == 2
    assert pickle.loads(pickle.dumps(sites[0])) == sites[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(_sum, sites[0]).result() == expected


def test_survey_counts_what_the_masks_hold(scene):
    sites, _, _ = join_sites(*find_files(scene, None, None), Join())
    found, problems = look_at(sites)
    assert not problems and len(found.sites) == 5
    for site in sites:
        area = site.window
        with rasterio.open(site.mask.path) as mask, rasterio.open(site.image.path) as photo:
            left, bottom, right, top = rasterio.coords.disjoint_bounds(mask.bounds, photo.bounds) or (
                max(mask.bounds.left, photo.bounds.left), max(mask.bounds.bottom, photo.bounds.bottom),
                min(mask.bounds.right, photo.bounds.right), min(mask.bounds.top, photo.bounds.top),
            )  # fmt: skip
            truth = mask.read(1, window=mask.window(left, bottom, right, top).round())
        assert truth.shape == (area.height, area.width)
        assert found.counts[site.id].tolist() == [np.sum(truth == value) for value in (0, 1, 255)]
        for index, spots in enumerate(found.spots[site.id]):
            assert (truth[spots[:, 0] - area.row, spots[:, 1] - area.col] == index).all()
    facts = dict(audit(found))
    assert "5 orthophotos" in facts["sites"] and "Permeable" in facts["mask pixels"]


def test_splits_follow_folders_and_masks(scene, easy, tmp_path):
    sites, _, _ = join_sites(*find_files(scene, None, None), Join())
    parts, how = split_sites(sites, 0.1, 0.1, 0)
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 3, "val": 1, "test": 1} and "folders" in how
    training = [site for site in sites if site.id.startswith("train/")]
    parts, how = split_sites(training, 0.3, 0.1, 0)
    assert len(parts["train"]) == 2 and len(parts["val"]) == 1 and not parts["test"] and "val split from" in how
    with pytest.raises(ValueError, match="--split block"):
        split_sites(training[:1], 0.1, 0.1, 0)
    with pytest.raises(ValueError, match="train"):
        split_sites([site for site in sites if site.id.startswith("val/")], 0.1, 0.1, 0)


@settings(deadline=None, max_examples=15)
@given(side=st.integers(20, 90), context=st.integers(0, 30))
def test_tiles_cover_every_labeled_pixel_once(scene, side, context):
    sites, _, _ = join_sites(*find_files(scene, None, None), Join())
    site = sites[0]
    seen = np.zeros((site.grid.height, site.grid.width), int)
    for tile in plan_tiles([site], side, context):
        image, classes = tile.read()
        assert image.shape[1:] == classes.shape == (tile.window.height, tile.window.width)
        seen[tile.window.slices] += classes != 255
    whole = site.read_classes(Window(0, 0, site.grid.height, site.grid.width)) != 255
    assert np.array_equal(seen, whole.astype(int))


def test_tiles_can_be_thinned(scene):
    sites, _, _ = join_sites(*find_files(scene, None, None), Join())
    tiles = list(plan_tiles(sites, 40, 0))
    assert thin(tiles, 0) == tiles and len(thin(tiles, 5)) == 5 and len({tile.id for tile in thin(tiles, 5)}) == 5


def test_folders_are_checked(tmp_path, easy):
    with pytest.raises(FileNotFoundError, match="--data-root"):
        find_files(tmp_path / "no", None, None)
    with pytest.raises(FileNotFoundError, match="ORTOFOTOS"):
        find_files(tmp_path, None, None)
    photos, masks = find_files(None, easy / "INSUMOS" / "ORTOFOTOS", easy / "DATA" / "OUTPUT" / "MASCARAS" / "train")
    assert len(photos) == 5 and [mask.id for mask in masks] == ["suelo0", "suelo1", "suelo2"]
