"""A recipe that is too long for the device is spoken of, with what to do."""

import pytest

from common.command.config import TrainConfig
from common.training.estimate import advise


@pytest.mark.parametrize(
    ("epochs", "minutes", "seconds", "words"),
    [
        (250, 0.0, 11654.0, "33.7 days"),  # permeability's default on two CPU cores
        (250, 1.0, 11654.0, "one epoch takes longer than --max-minutes 1"),
        (30, 0.0, 60.0, None),
        (250, 60.0, 300.0, None),
    ],
)
def test_an_absurd_estimate_names_the_recipe_for_small_devices(epochs, minutes, seconds, words):
    said = advise("permeability", TrainConfig(epochs=epochs, max_minutes=minutes), seconds)
    assert said is None if words is None else words in said and "--config permeability/best.yaml" in said
