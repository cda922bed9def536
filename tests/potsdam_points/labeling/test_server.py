"""The server: clicks arrive, strangers do not."""

import http.client
import json
import threading
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from potsdam_points.labeling.server import PageServer
from potsdam_points.points import HEADER
from tests.potsdam_points.labeling.pictures import disc_picture, open_session


@pytest.fixture
def server(tmp_path):
    running = PageServer(open_session(tmp_path))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    running.session.close()


@pytest.fixture
def ask(server):
    """Ask like the page does, or otherwise; returns status and body."""

    def asker(path, body=None, *, token=None, method=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        headers = {"X-Token": server.token if token is None else token} | headers
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="Host" in headers)
        if body is not None and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body if isinstance(body, bytes) else None)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    return asker


def click(ask, **content):
    status, body = ask("/click", json.dumps(content).encode())
    return status, json.loads(body) if status == 200 else body.decode()


def test_a_click_is_on_the_disk_when_it_is_acknowledged(server, ask):
    status, done = click(ask, do="add", image="disc", x=5, y=6, label=1)
    assert status == 200 and done["counts"] == [0, 1]
    table = server.session.store.path.read_text().splitlines()
    assert table == [",".join(HEADER), "disc,5,6,bright"]
    assert click(ask, do="move", number=done["number"], x=7, y=8)[0] == 200
    assert click(ask, do="label", number=done["number"], label=0)[0] == 200
    _, points = ask("/points?image=disc")
    assert json.loads(points) == {str(done["number"]): {"image": "disc", "x": 7, "y": 8, "label": 0}}
    assert click(ask, do="remove", number=done["number"])[0] == 200
    assert click(ask, do="remove", number=done["number"])[0] == 400


def test_two_tabs_lose_nothing(server, ask):
    def clicker(offset):
        for i in range(25):
            assert click(ask, do="add", image="disc", x=i, y=offset, label=0)[0] == 200

    threads = [threading.Thread(target=clicker, args=(offset,)) for offset in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    lines = server.session.store.path.read_text().splitlines()[1:]
    assert sorted(lines) == sorted(f"disc,{i},{offset},dark" for i in range(25) for offset in range(2))


@pytest.mark.parametrize(
    "content",
    [
        {"do": "add", "image": "disc", "x": 300, "y": 0, "label": 0},
        {"do": "add", "image": "disc", "x": 1.5, "y": 0, "label": 0},
        {"do": "add", "image": "disc", "x": True, "y": 0, "label": 0},
        {"do": "add", "image": "../disc", "x": 1, "y": 0, "label": 0},
        {"do": "add", "image": "disc", "x": 1, "y": 0},
        {"do": "format the disk"},
        {},
    ],
)
def test_clicks_that_make_no_sense(server, ask, content):
    status, reason = click(ask, **content)
    assert status == 400 and "\n" not in reason and reason
    assert not server.session.store.path.exists()


def test_bodies_that_are_none(ask):
    assert ask("/click", b"[1]")[0] == 400 and ask("/click", b"{")[0] == 400 and ask("/click", b"\xff")[0] == 400


def test_tiles_are_the_picture(ask):
    status, body = ask("/tile?layer=picture&image=disc&z=0&x=0&y=0")
    tile = cv2.cvtColor(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert status == 200 and np.abs(tile.mean(axis=2) - disc_picture()[0].mean(axis=0)[:256, :256]).mean() < 6
    assert ask("/tile?layer=map&image=disc&z=0&x=0&y=0")[0] == 404
    assert ask("/tile?layer=picture&image=disc&z=0&x=9&y=0")[0] == 404
    assert ask("/tile?layer=secret&image=disc&z=0&x=0&y=0")[0] == 400
    assert ask("/tile?layer=picture&image=none&z=0&x=0&y=0")[0] == 400
    assert ask("/tile?layer=picture&image=disc&z=0&x=a&y=0")[0] == 400


def test_the_page_comes_from_here_alone(server, ask):
    path = urlsplit(server.url)
    status, body = ask(f"{path.path}?{path.query}", token="")
    assert status == 200 and server.token in body.decode() and b"http://" not in body and b"//cdn" not in body
    for name in ("/page.js", "/style.css", "/state"):
        assert ask(name)[0] == 200


@pytest.mark.parametrize("path", ["/", "/state", "/page.js", "/tile?layer=picture&image=disc&z=0&x=0&y=0"])
def test_nobody_without_the_token(ask, path):
    assert ask(path, token="")[0] == 403
    assert ask(path, token="wrong")[0] == 403
    assert ask(path, token="é".encode().decode("latin-1"))[0] == 403


def test_nobody_from_elsewhere(server, ask):
    port = server.server_address[1]
    assert server.server_address[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}", ""):
        assert ask("/state", Host=host)[0] == 403
    assert ask("/state", Host=f"localhost:{port}")[0] == 200
    assert ask("/click", b"{}", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../points.csv", "/..%2fpoints.csv", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page/../server.py",
        "/server.py", "/page.js/", "/page.js%00", "http://127.0.0.1/etc/passwd", "/\\..\\points.csv",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(ask, path):
    assert ask(path)[0] in (400, 403, 404)


def test_large_bodies_are_refused_unread(ask):
    assert ask("/click", b"", **{"Content-Length": str(10 << 20)})[0] == 413
    assert ask("/click", b"", **{"Content-Length": "-1"})[0] == 413
    assert ask("/click", b"", **{"Content-Length": "x"})[0] == 413


def test_a_picture_that_went_away_is_an_answer(server, ask):
    server.session.sources["disc"].path.unlink()
    status, reason = ask("/tile?layer=picture&image=disc&z=0&x=0&y=0")
    assert status in (400, 500) and b"disc.tif" in reason
    assert ask("/state")[0] == 200


def test_learning_and_suggestions_over_the_wire(server, ask):
    assert ask("/learn", b'{"seconds": 1}')[0] == 400  # no points yet
    for x, y, kind in ((150, 150, 1), (140, 160, 1), (10, 10, 0), (290, 20, 0)):
        click(ask, do="add", image="disc", x=x, y=y, label=kind)
    assert json.loads(ask("/learn", b'{"seconds": 0.2}')[1]) == {"started": True}
    server.session.learner._thread.join()
    state = json.loads(ask("/state")[1])
    assert state["version"] == 1 and not state["busy"] and state["classes"][1]["points"] == 2
    for layer in ("map", "doubt"):
        status, body = ask(f"/tile?layer={layer}&image=disc&z=0&x=0&y=0")
        assert status == 200 and cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED).shape == (
            256,
            256,
            4,
        )
    assert len(json.loads(ask("/suggest?image=disc&row=0&col=0&height=300&width=300")[1])) > 1
    for seconds in (b"0", b"-1", b"1e9", b'"x"', b"null"):
        assert ask("/learn", b'{"seconds": %s}' % seconds)[0] == 400


def test_closing_waits_for_the_answers_under_way():
    server = PageServer(None)
    closing = threading.Thread(target=server.server_close)
    with server.under_way():
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
    closing.join(10)
    assert not closing.is_alive()


def test_closing_ends_the_connections_that_a_browser_keeps(tmp_path):
    server = PageServer(open_session(tmp_path))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    before = set(threading.enumerate())
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET", "/state", headers={"X-Token": server.token})
    connection.getresponse().read()
    assert set(threading.enumerate()) > before  # it waits for the next request
    server.shutdown()
    server.server_close()
    server.session.close()
    serving.join()
    assert not set(threading.enumerate()) - before
    connection.close()
