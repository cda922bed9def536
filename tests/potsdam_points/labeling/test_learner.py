"""Learning from clicks: the map follows the points, and is a checkpoint too."""

import numpy as np
import pytest

from common.networks.checkpoint import load_checkpoint
from potsdam_points.labeling.store import Point
from tests.potsdam_points.labeling.pictures import disc_picture, open_session


@pytest.fixture
def session(tmp_path):
    opened = open_session(tmp_path)
    yield opened
    opened.close()


def label(session, count=20):
    truth, generator = disc_picture()[1], np.random.default_rng(3)
    for _ in range(count):
        row, col = generator.integers(0, 300, 2).tolist()
        session.store.add(Point("disc", col, row, int(truth[row, col])))
    return truth


def test_a_network_learns_from_twenty_points(session, tmp_path):
    truth = label(session)
    assert session.learner.tile("disc", 0, 0, 0) is None  # nothing to show yet
    session.learner.train(0, steps=25)
    found = session.learner.probabilities("disc", 0, 0, 300)
    assert found.shape == (2, 300, 300) and np.allclose(found.sum(axis=0), 1, atol=1e-5)
    assert (found.argmax(axis=0) == truth).mean() > 0.95
    card, weights, _ = load_checkpoint(tmp_path / "run" / "best_iou.pt")
    assert card.classes == ["dark", "bright"] and all(np.isfinite(value.numpy()).all() for value in weights.values())


def test_tiles_of_the_map_fit_the_picture(session):
    label(session)
    session.learner.train(0, steps=2)
    whole = session.learner.probabilities("disc", 0, 0, 300)
    assert session.learner.tile("disc", 0, 1, 1).shape == (2, 44, 44)
    assert session.learner.tile("disc", 1, 0, 0).shape == (2, 150, 150)
    assert np.abs(session.learner.tile("disc", 0, 1, 1) - whole[:, 256:, 256:]).max() < 0.02
    assert session.learner.tile("disc", 0, 2, 0) is None and session.learner.tile("disc", 3, 0, 0) is None


def test_one_class_is_not_enough(session):
    session.store.add(Point("disc", 3, 4, 1))
    with pytest.raises(ValueError, match="at least two classes"):
        session.learner.train(0, steps=1)
    with pytest.raises(ValueError, match="at least two classes"):
        session.learn(5)


def test_a_failure_is_shown_and_the_next_try_works(session, monkeypatch):
    label(session)
    with monkeypatch.context() as patch:
        patch.setattr(session.learner, "train", lambda seconds: 1 / 0)
        assert session.learner.learn(1)
        session.learner._thread.join()
    assert "learning failed: division by zero" in session.learner.message and not session.learner.busy
    assert session.learner.learn(0.1)
    session.learner._thread.join()
    assert session.learner.version == 1


def test_suggestions_lie_in_the_picture_and_apart(session):
    for trained in (False, True):
        if trained:
            label(session, 12)
            session.learner.train(0, steps=5)
        found = session.suggest("disc", (100, 100, 150, 150))
        places = np.array([(one["y"], one["x"]) for one in found])
        assert len(places) > 2 and (places >= 0).all() and (places < 300).all()
        distances = np.abs(places[:, None] - places[None]).sum(axis=2)
        assert distances[~np.eye(len(places), dtype=bool)].min() > 32
