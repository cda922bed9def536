import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from common.images.windows import Window, opened
from permeability import data
from permeability.data import (
    Join,
    audit,
    find_files,
    inspect_sites,
    join_sites,
    plan_tiles,
    split_sites,
    thin,
)
from permeability.labels import to_classes
from tests.permeability.sheets import CRS, LEFT, TOP, join, one, patches, write_pair, write_raster


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
    found, _ = inspect_sites(sites)
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
    found, _ = inspect_sites(sites)
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
    _, problems = inspect_sites(sites)
    assert len(problems) == 1 and "strange.tif" in problems[0] and "9 (3 pixels)" in problems[0]
    broken = write_raster(tmp_path / "broken.tif", np.random.default_rng(0).integers(0, 255, (3, 300, 300), np.uint8))
    broken.write_bytes(broken.read_bytes()[:-5000])
    sites, _, _ = join([broken], [write_raster(tmp_path / "good.tif", mask)])
    _, problems = inspect_sites(sites)
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
    before = opened.cache_info().misses
    image, classes = site.read(Window(0, 0, 50, 50))
    return int(image.sum()), int(classes.sum()), opened.cache_info().misses - before


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sites_work_in_other_processes(easy, method):
    sites, _, _ = join_sites(*find_files(easy, None, None), Join())
    opened.cache_clear()
    expected = _sum(sites[0])  # opens both files here: these handles must not be used there
    assert expected[2] == 2
    assert pickle.loads(pickle.dumps(sites[0])) == sites[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(_sum, sites[0]).result() == expected


def test_survey_counts_what_the_masks_hold(scene):
    sites, _, _ = join_sites(*find_files(scene, None, None), Join())
    found, problems = inspect_sites(sites)
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
        pair = tile.read()
        image, classes = pair.image, pair.classes
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


def test_two_masks_of_one_name_are_told(tmp_path):
    for name in ("a.tif", "b.tif", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"b\.png and .*b\.tif have one name|b\.tif and .*b\.png have one name"):
        find_files(None, tmp_path, tmp_path)


def test_every_value_of_a_mask_that_is_no_class_is_listed():
    values = np.array([[0, 1, 255, 2, 2, 3, 9]])
    for kind in (np.int64, np.uint8):
        with pytest.raises(ValueError, match=r"2 \(2 pixels\), 3 \(1 pixels\), 9 \(1 pixels\); a mask has 1 = perm"):
            to_classes(values.astype(kind), None)
        with pytest.raises(ValueError, match=r"2 \(1 pixels\)"):
            to_classes(values[:, :4].astype(kind), None)
    assert to_classes(values[:, :3], 1).tolist() == [[0, 1, 255]], "1 as nodata is the class"
    assert to_classes(values[:, :3], 255).tolist() == [[0, 1, 255]]


def test_a_survey_in_strips_is_the_same(tmp_path, monkeypatch):
    mask = patches(50, 60, seed=1)[1]
    mask[3:9, 4:20] = 255
    site, _ = one(tmp_path, mask, left=LEFT + 5, top=TOP - 4)
    assert (site.window.row, site.window.col) == (8, 10)
    whole = site.read_classes(Window(0, 0, 60, 80))
    monkeypatch.setattr(data, "STRIP", 60 * 7)
    monkeypatch.setattr(data, "KNOWN_SPOTS", 60)
    counts, spots = data.survey(site)
    assert counts.tolist() == [np.sum(mask == 0), np.sum(mask == 1), np.sum(mask == 255)]
    for index, places in enumerate(spots):
        assert len(places) == 60 and (whole[places[:, 0], places[:, 1]] == index).all()
        assert places[:, 0].max() > 45 and places[:, 0].min() < 25, "from everywhere"


def test_a_mask_with_two_sites_is_one_problem(tmp_path):
    site, _ = one(tmp_path, np.full((60, 80), 9, np.uint8))
    found, problems = inspect_sites([site, replace(site, id="again")])
    assert not found.sites and len(problems) == 1 and "9 (4800 pixels)" in problems[0]


def test_an_audit_counts(tmp_path):
    mask = np.ones((60, 80), np.uint8)
    mask[:, :20], mask[:15, 40:] = 0, 255
    site, _ = one(tmp_path, mask)
    facts = dict(audit(inspect_sites([site])[0]))
    assert facts["mask pixels"] == "No permeable 1200 (28.57%), Permeable 3000 (71.43%)"
    assert facts["ignored"].startswith("600 (12.50%)") and facts["labeled ground"].startswith("1050 square")
    assert facts["pixel size"] == "0.5 (1)" and facts["size (rows x columns)"] == "60 x 80 (1)"


@pytest.mark.parametrize(("value", "name"), [(0, "No permeable"), (1, "Permeable"), (255, "ignored pixels")])
def test_masks_of_one_class_are_refused(tmp_path, value, name):
    site, _ = one(tmp_path, np.full((60, 80), value, np.uint8))
    with pytest.raises(ValueError, match=f"1 sites hold nothing but {name}:"):
        audit(inspect_sites([site])[0])


def named_sites(*names):
    return [SimpleNamespace(id=name) for name in names]


def test_the_sites_of_one_mask_stay_together():
    sites = named_sites(*(f"mask{number}@{sheet}" for number in range(10) for sheet in "ab"))
    for seed in range(5):
        parts, how = split_sites(sites, 0.2, 0.3, seed)
        masks = {part: {name.split("@")[0] for name in ids} for part, ids in parts.items()}
        assert {part: len(some) for part, some in masks.items()} == {"train": 5, "val": 2, "test": 3}
        assert {part: len(ids) for part, ids in parts.items()} == {"train": 10, "val": 4, "test": 6}
        assert how == "at random by mask"


def test_splits_follow_seed_and_shares():
    sites = named_sites(*(f"train/{number}" for number in range(20)), "test/a", "test/b")
    splits = [split_sites(sites, 0.3, 0.5, seed)[0] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert len(splits[0]["val"]) == 6 and len(splits[0]["train"]) == 14 and splits[0]["test"] == ["test/a", "test/b"]
    loose = named_sites(*(f"{name}{number}" for name in ("train", "val", "test") for number in range(4)))
    assert split_sites(loose, 0.25, 0.25, 0)[1] == "at random by mask", "names mean nothing, folders do"


def test_an_empty_folder_of_a_part_is_none(easy, tmp_path):
    shutil.copytree(easy / "DATA" / "OUTPUT" / "MASCARAS", tmp_path / "masks")
    for path in (tmp_path / "masks" / "val").iterdir():
        path.unlink()
    _, masks = find_files(None, easy / "INSUMOS" / "ORTOFOTOS", tmp_path / "masks")
    assert {mask.part for mask in masks} == {"train", "test"} and len(masks) == 4


def test_tiles_have_context_and_a_largest_side_and_are_not_empty(tmp_path):
    mask = np.ones((60, 80), np.uint8)
    mask[:30, 40:] = 255
    site, _ = one(tmp_path, mask)
    tiles = list(plan_tiles([site], 40, 8))
    assert [tile.core for tile in tiles] == [Window(0, 0, 30, 40), Window(30, 0, 30, 40), Window(30, 40, 30, 40)]
    assert [tile.window for tile in tiles] == [Window(0, 0, 38, 48), Window(22, 0, 38, 48), Window(22, 32, 38, 48)]
    assert [tile.id for tile in tiles] == ["mask_0_0", "mask_30_0", "mask_30_40"]
    assert [tile.core for tile in plan_tiles([site], 60, 8)] == [Window(0, 0, 60, 40), Window(0, 40, 60, 40)]


@pytest.mark.parametrize(("count", "kept"), [(5, [0, 2, 4, 6, 8]), (3, [0, 3, 6]), (10, list(range(10))), (1, [0])])
def test_thinned_tiles_are_spread_evenly(count, kept):
    assert thin(list(range(10)), count) == kept


def test_masks_may_be_called_masks_and_other_results_are_left_out_by_name(easy, tmp_path, capsys):
    data = shutil.copytree(easy, tmp_path / "data")
    masks, photos = data / "DATA" / "OUTPUT" / "MASCARAS" / "train", data / "INSUMOS" / "ORTOFOTOS"
    (masks / "suelo0.tif").rename(masks / "suelo0_mask.tif")
    shutil.copy(masks / "suelo1.tif", masks / "suelo1_prob.tif")
    shutil.copy(photos / "sheet0.tif", photos / "sheet0_figure.png")
    images, found = find_files(data, None, None)
    assert [mask.id for mask in found if mask.part == "train"] == ["train/suelo0_mask", "train/suelo1", "train/suelo2"]
    assert len(images) == 5
    said = capsys.readouterr().err
    assert "suelo1_prob.tif" in said and "sheet0_figure.png" in said and "suelo0_mask" not in said
