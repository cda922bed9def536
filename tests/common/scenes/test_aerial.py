import hashlib
import random
import tempfile

import cv2
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from common.scenes import aerial, aerial_world, sites
from common.scenes.aerial import (
    LAND,
    PALETTE,
    AerialWorld,
    permeable,
    potsdam,
    render_scene,
    write_footprints,
    write_permeability,
    write_potsdam,
    write_rooftops,
)
from common.scenes.canvas import (
    BUILDING,
    CAR,
    CLUTTER,
    IMPERVIOUS,
    LOW_VEGETATION,
    SOIL,
    TREE,
    UNDEFINED,
    WATER,
    Canvas,
    Outline,
    Surface,
    Thing,
)
from common.scenes.houses import dense, houses
from common.scenes.materials import PITCHED, Season, patio
from common.scenes.plots import CROWN, DETAIL, Plot
from common.scenes.town import COUNTRY, HIGHEST, Town
from tests.peers import Peer

DecisionTreeClassifier = Peer("sklearn.tree:DecisionTreeClassifier")

STONE = Surface(IMPERVIOUS, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
ROOF = Surface(BUILDING, (0.6, 0.4, 0.3), (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, 220, 220) for seed in range(24)]


@pytest.fixture(scope="module")
def small_blocks():
    """A world cut into blocks of 96 pixels, so that windows cross many of them, and a piece of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aerial_world, "BLOCK", 96)
        world = AerialWorld(3, gsd=0.3)
        yield world, world.render(-110, 40, 300, 260)


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.transform, file.crs, file.bounds, file.nodata


def overlap(a, b):
    return a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top


def empty_canvas(height, width, gsd=0.25):
    return Canvas(0, 0, height, width, gsd, STONE)


def reach(item, x, y):
    """How far something comes away from a point along x or y at most."""
    points = np.array(getattr(item, "points", None) or [(item.x, item.y)])
    size = np.hypot(item.length, item.width) / 2 if isinstance(item, Thing) else item.breadth / 2
    return np.abs(points - (x, y)).max() + size


def test_same_seed_same_scene_and_another_seed_another():
    (image, classes), again, other = (render_scene(seed, 90, 120) for seed in (5, 5, 6))
    assert image.shape == (90, 120, 3) and classes.shape == (90, 120)
    assert image.dtype == classes.dtype == np.uint8
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(classes, again[1])
    assert not np.array_equal(image, other[0])


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_window_is_a_crop_of_the_whole(small_blocks, data):
    world, (image, classes) = small_blocks
    top, left = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 259))
    height, width = data.draw(st.integers(1, 300 - top)), data.draw(st.integers(1, 260 - left))
    window, labels = world.render(top - 110, left + 40, height, width)
    np.testing.assert_array_equal(window, image[top : top + height, left : left + width])
    np.testing.assert_array_equal(labels, classes[top : top + height, left : left + width])


def test_a_fresh_world_rendered_in_bands_is_the_same(small_blocks, monkeypatch):
    monkeypatch.setattr(aerial_world, "BLOCK", 96)
    bands = [AerialWorld(3, gsd=0.3).render(row, 40, 100, 260) for row in (90, -10, -110)][::-1]
    np.testing.assert_array_equal(np.concatenate([image for image, _ in bands]), small_blocks[1][0])


def test_blocks_meet_without_a_seam(small_blocks):
    world, (image, classes) = small_blocks
    whole, _, labels = world.paint(-110, 40, 300, 260)
    assert (labels != classes).mean() < 2e-4  # single pixels, where rounding decides
    assert (np.abs(whole.astype(int) - image).max(axis=2) > 2).mean() < 1e-3


def test_all_classes_occur_with_plausible_shares(scenes):
    share = np.bincount(np.concatenate([classes.ravel() for _, classes in scenes]), minlength=256) / (24 * 220 * 220)
    assert set(np.flatnonzero(share)) == {*range(len(LAND)), UNDEFINED}
    assert 0.2 < share[0] < 0.55 and 0.08 < share[1] < 0.4 and 0.1 < share[2] < 0.5 and 0.04 < share[3] < 0.35
    assert 0.005 < share[4] < 0.08 and 0.001 < share[5] < 0.1 and share[UNDEFINED] < 0.06
    assert 0.005 < share[WATER] < 0.15 and 0.03 < share[SOIL] < 0.3


def test_undefined_ground_can_be_had_with_its_class(scenes):
    number = next(k for k, (_, classes) in enumerate(scenes) if (classes == UNDEFINED).any())
    image, full = render_scene(number, 220, 220, undefined=False)
    np.testing.assert_array_equal(image, scenes[number][0])
    assert full.max() < len(LAND)
    known = scenes[number][1] != UNDEFINED
    np.testing.assert_array_equal(full[known], scenes[number][1][known])


def test_a_world_tells_the_class_of_unmapped_ground_too():
    world = AerialWorld(1, gsd=0.8)
    image, classes = world.render(0, 0, 700, 700)
    same, full = world.render(0, 0, 700, 700, undefined=False)
    np.testing.assert_array_equal(same, image)
    assert (classes == UNDEFINED).any() and full.max() < len(LAND)
    np.testing.assert_array_equal(np.where(classes == UNDEFINED, full, classes), full)


def test_some_scenes_have_an_unmapped_strip_at_an_edge(scenes):
    full = [
        any((edge == UNDEFINED).all() for edge in (c[0], c[-1], c[:, 0], c[:, -1])) and (c != UNDEFINED).mean() > 0.9
        for _, c in scenes
    ]
    assert 2 <= sum(full) <= 14


def test_colors_do_not_tell_the_classes(scenes):
    pixels = [image.reshape(-1, 3)[::5] for image, _ in scenes]
    truths = [classes.ravel()[::5] for _, classes in scenes]
    known = [truth != UNDEFINED for truth in truths]
    tree = DecisionTreeClassifier(max_depth=10, min_samples_leaf=20, random_state=0)
    train, test = range(16), range(16, 24)
    tree.fit(np.concatenate([pixels[k][known[k]] for k in train]), np.concatenate([truths[k][known[k]] for k in train]))
    truth = np.concatenate([truths[k][known[k]] for k in test])
    guess = tree.predict(np.concatenate([pixels[k][known[k]] for k in test]))
    scores = [((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum() for k in range(len(LAND))]
    assert 0.12 < np.mean(scores) < 0.45


def test_sizes_follow_the_ground_sampling_distance():
    fine, coarse = (AerialWorld(8, gsd=gsd).paint(0, 0, side, side)[1] for gsd, side in ((0.1, 600), (0.3, 200)))
    assert (fine[1::3, 1::3] == coarse).mean() > 0.96  # the same ground, seen from higher up


def test_strips_leave_no_seams(monkeypatch):
    picture, whole = AerialWorld(3, gsd=0.3), AerialWorld(3, gsd=0.3)
    monkeypatch.setattr(aerial_world, "STRIP", 50)
    striped = picture.paint(40, 50, 210, 60)
    monkeypatch.setattr(aerial_world, "STRIP", 500)
    for one, other in zip(striped, whole.paint(40, 50, 210, 60), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_shadows_fall_away_from_the_sun_as_far_as_the_house_is_high():
    world = AerialWorld(0, gsd=0.25)
    world.sun, world.elevation = (0.0, 1.0), np.arctan(0.5)  # sun in the south: twice the height of shadow in the north
    canvas = empty_canvas(160, 80)
    canvas.draw(Thing("box", 7, ROOF, 10.0, 30.0, 0.0, 6.0, 6.0, 5.0))
    light = world._light(canvas.relief, world._shadows(canvas.relief, np.s_[0:160, 0:80]))[:, 40, 1]
    north, south = (30 - 3) / 0.25, (30 + 3) / 0.25
    dark = np.flatnonzero(light < 0.6)
    assert dark.min() == pytest.approx(north - 40, abs=4)
    assert north - 4 < dark.max() <= north + 2
    assert light[int(south) + 4 :] == pytest.approx(1, abs=0.05)
    assert light[112:128] == pytest.approx(1, abs=0.05)  # the roof


def test_the_side_of_a_roof_that_faces_the_sun_is_brighter():
    world = AerialWorld(0, gsd=0.25)
    world.sun, world.elevation = (0.0, 1.0), np.radians(45)
    canvas = empty_canvas(80, 80)
    canvas.draw(Thing("gable", 7, ROOF, 10.0, 10.0, 0.0, 10.0, 8.0, 3.0, slope=0.6))
    light = world._light(canvas.relief, world._shadows(canvas.relief, np.s_[0:80, 0:80]))[..., 1]
    north, south = light[28:36, 30:50].mean(), light[44:52, 30:50].mean()
    assert canvas.relief.max() == pytest.approx(3 + 0.6 * 4, abs=0.1)
    ratio = (south - world.sky) / (north - world.sky)
    assert ratio == pytest.approx((1 + 0.6) / (1 - 0.6), rel=0.1)  # Lambert's law for two slopes


def test_a_round_roof_is_an_arch_across_its_length():
    canvas = empty_canvas(80, 80)
    canvas.draw(Thing("barrel", 7, ROOF, 10.0, 10.0, 0.0, 12.0, 8.0, 3.0, slope=0.25))
    roof = canvas.labels == BUILDING
    assert roof.sum() == 48 * 32
    rows = canvas.relief[roof].reshape(32, 48)
    assert np.ptp(rows, axis=1).max() == 0  # level along its length
    across = (np.arange(32) + 0.5) * 0.25 - 4
    np.testing.assert_allclose(rows[:, 0], 3 + 2 * np.sqrt(1 - (across / 4) ** 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "covers"),
    [
        ("desert", {SOIL: (0.9, 1)}),
        ("coast", {WATER: (0.3, 1)}),
        ("scrub", {TREE: (0.01, 0.6), IMPERVIOUS: (0, 0.01)}),
        ("country_road", {IMPERVIOUS: (0.03, 0.4)}),
        ("highway", {IMPERVIOUS: (0.1, 0.8), CAR: (0.0005, 0.02)}),
        ("roundabout", {IMPERVIOUS: (0.05, 0.7)}),
        ("works", {BUILDING: (0.03, 0.6), CLUTTER: (0.01, 0.3)}),
        ("earthworks", {BUILDING: (0, 0), SOIL: (0.3, 1), CLUTTER: (0.003, 0.2)}),
        ("grounds", {BUILDING: (0.03, 0.6), IMPERVIOUS: (0.3, 0.9), CAR: (0.0005, 0.05)}),
        ("factory", {BUILDING: (0.3, 0.8), IMPERVIOUS: (0.1, 0.6), CLUTTER: (0.005, 0.3)}),
        ("campus", {BUILDING: (0.25, 0.6), LOW_VEGETATION: (0.05, 0.8), CAR: (0, 0)}),
    ],
)
def test_blocks_outside_towns_are_what_they_are_called_and_keep_to_themselves(kind, covers):
    canvases = []
    for seed in range(12):
        season = Season(lush=0.5, bare=0.0, warm=0.0, arid=1.0 if kind == "desert" else 0.3)
        plot = Plot(random.Random(seed), season, lambda u, v: (u, v), lambda u, v: 0.0, 20.0, 20.0, 95.0, 75.0)
        next(build for _, build in COUNTRY if build.__name__ == kind)(plot)
        canvas = Canvas(0, 0, 190, 230, 0.5, STONE)
        for item in sorted(plot.items, key=lambda item: item.layer):
            canvas.draw(item)
        canvases.append(canvas.labels[40:150, 40:190])
        assert all(item.layer <= CROWN for item in plot.items)
        assert max(reach(item, 57.5, 47.5) for item in plot.items) < 80
    for label, (low, high) in covers.items():
        assert low <= np.mean([(labels == label).mean() for labels in canvases]) <= high, label


@pytest.mark.parametrize("build", [sites.factory, sites.works])
def test_stores_of_goods_stay_in_their_block(build):
    season, goods = Season(lush=0.5, bare=0.0, warm=0.0), []
    for seed in range(30):
        plot = Plot(random.Random(seed), season, lambda u, v: (u, v), lambda u, v: 0.0, 20.0, 20.0, 95.0, 75.0)
        build(plot)
        goods += [item for item in plot.items if isinstance(item, Thing) and item.surface.label == CLUTTER]
    assert len(goods) > 300
    assert all(20 <= item.x <= 95 and 20 <= item.y <= 75 for item in goods)


def test_half_of_the_campuses_have_a_court_with_wings_on_its_edges():
    season, courts = Season(lush=0.5, bare=0.0, warm=0.0), 0
    for seed in range(60):
        plot = Plot(random.Random(seed), season, lambda u, v: (u, v), lambda u, v: 0.0, 20.0, 20.0, 95.0, 75.0)
        sites.campus(plot)
        for court in plot.items:
            if isinstance(court, Outline) and court.layer == DETAIL:
                (left, top), (right, bottom) = court.points[0], np.max(court.points, axis=0)
                canvas = Canvas(0, 0, 190, 230, 0.5, STONE)
                for item in sorted(plot.items, key=lambda item: item.layer):
                    if item.layer < CROWN:
                        canvas.draw(item)
                inside = canvas.labels[int(2 * top) : int(2 * bottom), int(2 * left) : int(2 * right)] == BUILDING
                assert inside[2:6, 2:-2].mean() > 0.99 and inside[2:-2, 2:6].mean() > 0.99
                courts += 1
    assert 20 <= courts <= 40


@pytest.mark.parametrize(("build", "often"), [(houses, 0.3), (dense, 0.5)])
def test_some_quarters_have_walls_around_their_lots(build, often):
    season, walled = Season(lush=0.5, bare=0.0, warm=0.0), []
    for seed in range(60):
        plot = Plot(random.Random(seed), season, lambda u, v: (u, v), lambda u, v: 0.0, 20.0, 20.0, 95.0, 75.0)
        build(plot)
        walls = [item for item in plot.items if isinstance(item, Thing) and item.surface.label == CLUTTER
                 and item.width <= 0.5 and item.height >= 1.5]  # fmt: skip
        walled.append(len(walls) > 10)
        assert all(20 <= wall.x <= 95.1 and 19.9 <= wall.y <= 75.1 for wall in walls), "on the edges of lots"
    assert often - 0.15 < np.mean(walled) < often + 0.15


def test_yards_are_floored_in_the_colors_of_roofs_and_are_none():
    rng = random.Random(0)
    floors = [patio(rng) for _ in range(300)]
    assert {floor.label for floor in floors} == {IMPERVIOUS}
    roofs = np.array([roof.color for roof in PITCHED])
    near = [np.abs(roofs - floor.color).max(axis=1).min() < 0.1 for floor in floors]
    assert np.mean(near) > 0.5


def test_under_bare_twigs_ground_is_mapped_as_tree_and_a_roof_as_roof():
    canvas = empty_canvas(60, 60)
    canvas.draw(Thing("box", 7, ROOF, 4.0, 7.5, 0.0, 12.0, 15.0, 3.0))  # its east edge is column 40
    canvas.draw(Thing("crown", 9, Surface(TREE, (0.4, 0.3, 0.3)), 10.0, 7.5, 0.0, 8.0, 8.0, 9.0, slope=0.6))
    twigs = canvas.owner == canvas.owner.max()
    assert 0.05 < twigs[20:40, 30:50].mean() < 0.95, "something shows between them"
    assert (canvas.labels[:, :40] == BUILDING).all()
    assert (canvas.labels[24:36, 40:48] == TREE).all()
    canvas.draw(Thing("crown", 9, Surface(TREE, (0.4, 0.3, 0.3)), 5.0, 7.5, 0.0, 5.0, 5.0, 9.0))
    assert canvas.labels[30, 20] == TREE, "leaves hide it"


def test_the_higher_thing_is_seen_whatever_the_order():
    tree = Thing("crown", 9, Surface(TREE, (0.2, 0.3, 0.1)), 5.0, 5.0, 0.0, 6.0, 6.0, 9.0)
    house = Thing("box", 7, ROOF, 5.0, 5.0, 0.3, 8.0, 8.0, 3.0)
    first, second = empty_canvas(40, 40), empty_canvas(40, 40)
    for canvas, order in ((first, (tree, house)), (second, (house, tree))):
        for thing in order:
            canvas.draw(thing)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.labels[20, 20] == TREE
    assert (first.labels == BUILDING).any()


def test_a_rectangle_covers_the_pixels_whose_centers_it_holds():
    canvas = empty_canvas(60, 60, gsd=0.5)
    canvas.draw(Thing("box", 7, ROOF, 14.0, 16.0, 0.5, 12.0, 5.0, 3.0))
    rows, cols = np.mgrid[:60, :60]
    corners = cv2.boxPoints(((14.0, 16.0), (12.0, 5.0), float(np.degrees(0.5))))
    inside = [
        cv2.pointPolygonTest(corners, (float(c), float(r)), False) >= 0
        for r, c in zip((rows.ravel() + 0.5) * 0.5, (cols.ravel() + 0.5) * 0.5, strict=True)
    ]
    np.testing.assert_array_equal(canvas.labels == BUILDING, np.array(inside).reshape(60, 60))


@pytest.mark.parametrize("varied", [False, True])
def test_towns_keep_within_the_bounds_that_painting_relies_on(varied):
    for seed in range(24 if varied else 3):
        town = Town(seed, varied)
        for i, j in ((0, 0), (-3, 2), (5, 7)):
            x, y = town.place((i + 0.5) * town.pitch[0], (j + 0.5) * town.pitch[1])
            for item in town._cell(i, j):
                assert reach(item, x, y) < town.near
                if isinstance(item, Thing) and item.form not in ("fitting", "crown"):
                    rise = item.slope * item.width * (1 if item.form == "barrel" else 0.5)
                    assert item.height + rise < HIGHEST - 1


def test_varied_towns_are_dyed_elsewhere_the_same_and_often_desert(scenes):
    plain, dyed = (AerialWorld(2, 0.3, varied=True) for _ in range(2))
    plain.town._dyed, dyed.town._dyed = 0.0, 0.5
    (image, classes), (other, same) = (world.render(0, 0, 200, 200) for world in (plain, dyed))
    np.testing.assert_array_equal(classes, same)
    changed = np.abs(image.astype(int) - other).max(axis=2) > 20
    assert {*np.unique(classes[changed])} >= {IMPERVIOUS, BUILDING} and changed[classes == IMPERVIOUS].mean() > 0.1
    np.testing.assert_array_equal(image[20:, 30:], plain.render(20, 30, 180, 170)[0])
    varied = [render_scene(seed, 220, 220, varied=True) for seed in range(24)]
    soil = [np.mean([(classes == SOIL).mean() for _, classes in each]) for each in (varied, scenes)]
    assert soil[0] > 1.4 * soil[1]


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gsd 3.0 m.*0.04 to 1.0"):
        AerialWorld(0, gsd=3.0)
    for call in (lambda: render_scene(0, 0, 5), lambda: AerialWorld(0).render(0, 0, 4, -1)):
        with pytest.raises(ValueError, match="both must be positive"):
            call()
    with pytest.raises(ValueError, match="one or more of at least 16 x 16"):
        write_potsdam(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()


def test_potsdam_patches_round_trip_through_the_palette(tmp_path):
    write_potsdam(tmp_path / "a", 3, seed=4, size=96)
    write_potsdam(tmp_path / "b", 3, seed=4, size=96)
    write_potsdam(tmp_path / "c", 3, seed=5, size=96)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert not set(digests(tmp_path / "a").values()) & set(digests(tmp_path / "c").values())
    assert names(tmp_path / "a") == ["Images", "Labels"]
    assert names(tmp_path / "a" / "Images") == ["Image_0.tif", "Image_1.tif", "Image_2.tif"]
    inverse = {color: label for label, color in PALETTE.items()}
    for number in range(3):
        image, _, classes = AerialWorld(4, 0.2).paint(0, number * 1500, 96, 96)  # one town, 300 m apart
        colors = tifffile.imread(tmp_path / "a" / "Labels" / f"Label_{number}.tif")
        back = np.array([inverse[tuple(color)] for color in colors.reshape(-1, 3).tolist()]).reshape(96, 96)
        edge = (back == UNDEFINED) & (potsdam(classes) != UNDEFINED)
        np.testing.assert_array_equal(back[~edge], potsdam(classes)[~edge])
        assert edge.mean() < 0.06
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "Images" / f"Image_{number}.tif"), image)


def test_water_and_soil_become_classes_of_the_benchmark_and_let_rain_in():
    world = np.array([[*range(len(LAND)), UNDEFINED]], np.uint8)
    assert potsdam(world).tolist() == [[0, 1, 2, 3, 4, 5, 5, 0, 255]]
    assert permeable(world).tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 255]]


def test_palette_is_that_of_the_benchmark():
    assert [PALETTE[k] for k in (0, 1, 2, 3, 4, 5, 255)] == [
        (255, 255, 255),
        (0, 0, 255),
        (0, 255, 255),
        (0, 255, 0),
        (255, 255, 0),
        (255, 0, 0),
        (0, 0, 0),
    ]


def test_rooftop_pairs(tmp_path):
    write_rooftops(tmp_path / "roofs", 4, seed=1, size=128)
    assert names(tmp_path / "roofs" / "label" / "label") == [f"scene_{k:03d}_label.tif" for k in range(4)]
    for number in range(4):
        _, classes, _ = AerialWorld(1, 0.15).paint(0, number * 2000, 128, 128)
        image = tifffile.imread(tmp_path / "roofs" / "images" / "images" / f"scene_{number:03d}.tif")
        label = tifffile.imread(tmp_path / "roofs" / "label" / "label" / f"scene_{number:03d}_label.tif")
        assert image.shape == (128, 128, 3)
        np.testing.assert_array_equal(label, np.uint8(255) * (classes == 1))


def test_footprint_crops_are_georeferenced_and_apart(tmp_path):
    write_footprints(tmp_path / "f", (2, 1, 1), seed=2, size=96)
    boxes = []
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        images, labels = tmp_path / "f" / part / "images", tmp_path / "f" / part / "labels"
        assert names(images) == names(labels) and len(names(images)) == count
        for path in images.iterdir():
            image, transform, crs, bounds, _ = read(path)
            mask, *same, _ = read(labels / path.name)
            assert image.shape == (3, 96, 96) and mask.shape == (1, 96, 96) and set(np.unique(mask)) <= {0, 255}
            assert same == [transform, crs, bounds]
            assert crs.to_epsg() == 32633 and transform.a == pytest.approx(0.3) and transform.e == pytest.approx(-0.3)
            boxes.append(bounds)
    for k, a in enumerate(boxes):
        assert not any(
            a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top for b in boxes[:k]
        )


def test_permeability_masks_lie_on_their_sheets_grid_but_not_on_its_extent(tmp_path):
    write_permeability(tmp_path / "p", (2, 1, 1), seed=3, height=150, width=200)
    sheets = sorted((tmp_path / "p" / "INSUMOS" / "ORTOFOTOS").iterdir())
    masks = sorted((tmp_path / "p" / "DATA" / "OUTPUT" / "MASCARAS").rglob("*.tif"))
    assert [path.parent.name for path in masks] == ["test", "train", "train", "val"]
    assert not {path.stem for path in sheets} & {path.stem for path in masks}
    tops = {path.name: number * 2 * (150 + 1200) for number, path in enumerate(sheets)}
    for mask_path in masks:
        mask, transform, crs, box, nodata = read(mask_path)
        assert crs.to_epsg() == 25830 and nodata == 255 and set(np.unique(mask)) <= {0, 1, 255}
        hits = []
        for path in sheets:
            _, own, crs, b, _ = read(path)
            assert crs.to_epsg() == 25830
            if overlap(box, b):
                hits.append((path, own, b))
        ((sheet, own, bounds),) = hits
        assert bounds != box
        col, row = (transform.c - own.c) / 0.25, (own.f - transform.f) / 0.25
        assert (transform.a, transform.e) == (own.a, own.e) == (0.25, -0.25)
        assert col == pytest.approx(round(col), abs=1e-6) and row == pytest.approx(round(row), abs=1e-6)
        _, classes = AerialWorld(3, 0.25).render(tops[sheet.name] + round(row), round(col), 150, 200)
        expected = np.where(classes == UNDEFINED, 255, np.isin(classes, (2, 3, WATER, SOIL)))
        assert (mask[0] != expected).mean() < 0.01  # painted in one go, not in the world's fixed blocks


@pytest.mark.parametrize(
    "write",
    [
        lambda root: write_potsdam(root, 2, size=32),
        lambda root: write_rooftops(root, 2, size=32),
        lambda root: write_footprints(root, (1, 1, 1), size=32),
        lambda root: write_permeability(root, (1, 1, 1), height=32, width=32),
    ],
)
def test_no_half_written_folder_and_nothing_is_overwritten(tmp_path, monkeypatch, write):
    root = tmp_path / "data" / "demo"
    root.mkdir(parents=True)
    (root / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        write(root)
    assert (root / "mine.txt").read_text() == "keep"
    (root / "mine.txt").unlink()

    calls = []

    def fails_late(*args):
        calls.append(args)
        if len(calls) > 1:
            raise RuntimeError("disk full")
        return original(*args)

    with monkeypatch.context() as patch:
        original = AerialWorld.paint
        patch.setattr(AerialWorld, "paint", fails_late)
        with pytest.raises(RuntimeError, match="disk full"):
            write(root)
    assert names(tmp_path / "data") == ["demo"] and not list(root.iterdir())
    made = []
    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **where: made.append(mkdtemp(**where)) or made[-1])
    replace = aerial.Path.replace
    moved = []
    monkeypatch.setattr(aerial.Path, "replace", lambda old, new: moved.append((str(old), new)) or replace(old, new))
    write(root)
    assert moved == [(made[0], root)]  # one rename, not a copy that could be met half done
    assert names(tmp_path / "data") == ["demo"] and list(root.iterdir())
    assert root.stat().st_mode & 0o111
