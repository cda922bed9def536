"""Encoders' weights: any number of channels, and downloads that can fail."""

import functools
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models._api import Weights, WeightsEnum

from common.command.cli import exit_code
from common.networks.backbones import adapt_stem, imagenet_state, load_encoder


@pytest.fixture
def filters():
    torch.manual_seed(0)
    return torch.randn(8, 3, 3, 3)


def test_one_channel_gives_what_grey_gave_as_rgb(filters):
    grey = torch.randn(2, 1, 9, 9)
    expected = F.conv2d(grey.expand(-1, 3, -1, -1), filters)
    torch.testing.assert_close(F.conv2d(grey, adapt_stem(filters, 1)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [3, 4, 5, 12])
def test_more_channels_keep_the_rgb_filters_exactly(filters, channels):
    adapted = adapt_stem(filters, channels)
    assert adapted.shape == (8, channels, 3, 3) and torch.equal(adapted[:, :3], filters)
    for extra in range(3, channels):
        torch.testing.assert_close(adapted[:, extra], filters.mean(1) / channels)


def test_two_channels_keep_the_sum(filters):
    adapted = adapt_stem(filters, 2)
    assert adapted.shape == (8, 2, 3, 3)
    torch.testing.assert_close(adapted.sum(1), filters.sum(1))


def encoder(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))


def named(model, channels=3):
    model.add_module("conv1", nn.Conv2d(channels, 2, 3))
    return model


@pytest.mark.parametrize("legacy", [False, True])
def test_an_encoder_takes_all_its_weights_and_leaves_the_classifier(legacy):
    source, target = named(encoder()), named(encoder(), channels=4)
    state = {**source.state_dict(), "fc.weight": torch.ones(3, 3)}
    if legacy:
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    load_encoder(target, state)
    for key, value in source.state_dict().items():
        assert torch.equal(
            target.state_dict()[key][:, :3] if key == "conv1.weight" else target.state_dict()[key], value
        )
    assert target.conv1.weight.shape[1] == 4


@pytest.mark.parametrize("lost", ["conv1.weight", "2.bias"])
def test_missing_weights_are_refused(lost):
    state = {key: value for key, value in named(encoder()).state_dict().items() if key != lost}
    with pytest.raises(ValueError, match=rf"lack 1 of the encoder's tensors, such as {lost}"):
        load_encoder(named(encoder()), state)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Weights of a tiny network on a web server of this machine, and an empty cache."""
    torch.manual_seed(0)
    state = named(encoder()).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        body = content

        def do_GET(self):
            found = self.path.startswith("/tiny-")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=functools.partial(http.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    url = f"http://127.0.0.1:{http.server_address[1]}/tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"

    def offer(url):
        class TinyWeights(WeightsEnum):
            DEFAULT = Weights(url=url, transforms=None, meta={})

        monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: TinyWeights)

    yield SimpleNamespace(
        state=state, url=url, offer=offer, handler=Handler, cache=tmp_path / "cache", stop=http.shutdown
    )
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_download_names_its_license_and_is_kept(server, capsys):
    server.offer(server.url)
    state = imagenet_state("tiny")
    assert "ImageNet" in capsys.readouterr().err and state.keys() == server.state.keys()
    assert all(torch.equal(state[key], value) for key, value in server.state.items())
    server.handler.body = b""
    assert imagenet_state("tiny").keys() == server.state.keys()  # from the cache
    target = named(encoder())
    load_encoder(target, state)
    assert torch.equal(target.conv1.weight, server.state["conv1.weight"])


@pytest.mark.parametrize("failure", ["refused", "missing", "corrupted", "cut short", "damaged in the cache", "unsafe"])
def test_a_failed_download_names_the_alternatives(server, failure, capsys):
    url = server.url
    if failure == "refused":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiny-00000000.pth"
    elif failure == "missing":
        url = url.replace("tiny", "none")
    elif failure == "corrupted":
        server.handler.body = server.handler.body[:-20] + b"x" * 20
    elif failure == "cut short":
        server.handler.body = server.handler.body[:500]
    elif failure == "damaged in the cache":
        folder = server.cache / "checkpoints"
        folder.mkdir(parents=True)
        (folder / url.rsplit("/", 1)[1]).write_bytes(server.handler.body[:700])
    else:
        folder = server.cache / "checkpoints"
        folder.mkdir(parents=True)
        torch.save({"conv1.weight": functools.partial(print, "code")}, folder / url.rsplit("/", 1)[1])
    server.offer(url)
    assert exit_code(lambda: bool(imagenet_state("tiny"))) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2 and "code" not in out  # the license, the error
    for words in ("tiny", url, "--weights none", "--weights PATH"):
        assert words in lines[1]
    if failure in ("corrupted", "cut short"):
        assert not list(server.cache.rglob("tiny-*")), "a broken file must not stay in the cache"
