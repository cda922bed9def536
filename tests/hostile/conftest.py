import pytest

from tests.hostile.arena import Arena
from tests.hostile.campaign import Zoo
from tests.hostile.cases import Bench, Listener
from tests.hostile.kit import write_geotiff
from tests.hostile.zoo import RGB


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Where commands run, each in a process of its own; they have everything imported and cost a fifth of a second."""
    arena = Arena()
    yield Bench(arena, tmp_path_factory.mktemp("hostile"))
    arena.close()


@pytest.fixture(scope="session")
def listener():
    """A port of the loopback that no command may ask."""
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def odd(bench, listener):
    """All odd files; some point to a file elsewhere and to the listener."""
    return Zoo(bench, write_geotiff(bench.root / "elsewhere" / "secret.tif", RGB), listener.port)


@pytest.fixture
def holds(listener):
    """Checks a verdict; and that nothing asked the network meanwhile."""
    before = listener.knocks

    def check(*verdicts):
        for verdict in verdicts:
            assert not verdict.faults, str(verdict)
        assert listener.knocks == before, "a file made a command ask the network"

    return check
