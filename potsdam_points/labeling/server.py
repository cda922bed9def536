"""The page's server: one user, one machine.

It listens on 127.0.0.1, answers nobody without the token of its address, nor a page of another host that found the port
(DNS rebinding: the Host header), and hands out three fixed files beside what it computes: no path of a request ever
reaches the disk.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from potsdam_points.labeling.judging import Judging
from potsdam_points.labeling.session import Session

LARGEST_BODY = 64 * 1024
"""Bytes of a request: a click takes some hundred."""
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PageServer(ThreadingHTTPServer):
    """The server of one session.

    Args:
        session: what is labeled, or judged.
        port: 0 = any free one.
    """

    daemon_threads = False

    def __init__(self, session: Session | Judging, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        self.session = session
        self.answering, self._idle = 0, threading.Condition()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count an answer until it is given."""
        with self._idle:
            self.answering += 1
        try:
            yield
        finally:
            with self._idle:
                self.answering -= 1
                self._idle.notify_all()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class'
        """Answer a connection in a thread of its own, and remember it: browsers keep theirs open."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the base class'
        """Forget a connection that ends."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close after the answers under way; every thread ends, since Python aborts amid one with a network."""
        with self._idle:
            self._idle.wait_for(lambda: self.answering == 0)
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    @property
    def url(self) -> str:
        """The address to open, token included."""
        return f"http://127.0.0.1:{self.server_address[1]}/?token={self.token}"


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: PageServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Stay silent: the terminal is for people."""

    def do_GET(self) -> None:
        """Pages, tiles, state."""
        with self.server.under_way():
            self._answer(self._get)

    def do_POST(self) -> None:
        """Clicks and commands."""
        with self.server.under_way():
            self._answer(self._post)

    def _answer(self, work: Callable[[str, dict[str, str]], tuple[bytes, str]]) -> None:
        parts = urlsplit(self.path)
        query = {key: found[-1] for key, found in parse_qs(parts.query).items()}
        try:
            self._check(query)
            body, kind = work(parts.path, query)
            self._send(HTTPStatus.OK, body, kind)
        except Refused as refused:
            self.close_connection = True  # what is left of its body is not read
            self._send(refused.status, str(refused).encode(), "text/plain; charset=utf-8")
        except (KeyError, ValueError, TypeError) as error:
            self._send(HTTPStatus.BAD_REQUEST, _line(error), "text/plain; charset=utf-8")
        except BrokenPipeError:  # the page moved on
            pass
        except Exception as error:  # a picture that cannot be read, a full disk: said in the page, the server goes on
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, _line(error), "text/plain; charset=utf-8")

    def _check(self, query: dict[str, str]) -> None:
        """Refuse requests that are not the page's own."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong host")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong origin")
        given = query.get("token") or self.headers.get("X-Token") or ""
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong token: use the address that label.py printed")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self, path: str, query: dict[str, str]) -> tuple[bytes, str]:
        if path in FILES:
            name, kind = FILES[path]
            text = (PAGE / name).read_text(encoding="utf-8").replace("{{token}}", self.server.token)
            return text.encode(), kind
        if path == "/state":
            return _json(self.server.session.state())
        if path == "/points":
            return _json({number: asdict(one) for number, one in self.server.session.store.of(query["image"]).items()})
        if path == "/tile":
            place = (int(query[name]) for name in ("z", "x", "y"))
            tile = self.server.session.tile(query["layer"], query["image"], *place)
            if tile is None:
                raise Refused(HTTPStatus.NOT_FOUND, "no such tile (yet)")
            return encode(tile)
        if path == "/suggest":
            box = [int(query[name]) for name in ("row", "col", "height", "width")]
            return _json(self.server.session.suggest(query["image"], (box[0], box[1], box[2], box[3])))
        raise Refused(HTTPStatus.NOT_FOUND, "nothing here")

    def _post(self, path: str, query: dict[str, str]) -> tuple[bytes, str]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {LARGEST_BODY} bytes")
        content = json.loads(self.rfile.read(int(length)) or b"{}")
        if not isinstance(content, dict):
            raise ValueError("the request is no JSON object")
        if path == "/click":
            return _json(self.server.session.click(content))
        if path == "/learn":
            return _json(self.server.session.learn(float(content.get("seconds", 20))))
        raise Refused(HTTPStatus.NOT_FOUND, "nothing here")


def encode(tile: NDArray[np.uint8]) -> tuple[bytes, str]:
    """A tile (h, w, 3) as JPEG, or (h, w, 4) as PNG."""
    clear = tile.shape[2] == 4
    picture = cv2.cvtColor(tile, cv2.COLOR_RGBA2BGRA if clear else cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if clear else [cv2.IMWRITE_JPEG_QUALITY, 90]
    done, data = cv2.imencode(".png" if clear else ".jpg", picture, options)
    assert done
    return data.tobytes(), "image/png" if clear else "image/jpeg"


def _json(value: object) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False).encode(), "application/json"


def _line(error: Exception) -> bytes:
    return (" ".join(str(error).split()) or type(error).__name__).encode()
