"""Initial weights: published Mix Transformers in both layouts, ResNets, whole networks, and downloads that fail."""

import functools
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import get_model

from common.command.cli import exit_code
from permeability import weights
from permeability.encoders import build_encoder, encoder_widths
from permeability.task import TASK
from permeability.weights import original_layout, segformer_state
from tests.peers import Peer

smp = Peer("segmentation_models_pytorch")
transformers = Peer("transformers")
load_file = Peer("safetensors.torch:load_file")

IMAGE = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96).sin()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small SegFormer of the peer with random weights, and its state dict in the layout of Hugging Face's files."""
    torch.manual_seed(0)
    network = transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=5)).eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.2)
    folder = tmp_path_factory.mktemp("segformer")
    network.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in state, "the layout of nvidia/mit-b*"
    return SimpleNamespace(network=network, state=state)


def features_agree(encoder, published):
    with torch.inference_mode():
        expected = published.network(IMAGE, output_hidden_states=True).hidden_states
        for ours, theirs in zip(encoder.eval()(IMAGE)[1:], expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_layout_of_hugging_face_gives_the_same_features(published):
    encoder = build_encoder("mit_b0")
    encoder.load_state_dict(original_layout(published.state))
    features_agree(encoder, published)


def test_the_original_layout_is_left_as_it_is():
    torch.manual_seed(0)
    reference = smp.encoders.get_encoder("mit_b0", weights=None).eval()
    state = reference.state_dict()
    encoder = build_encoder("mit_b0").eval()
    encoder.load_state_dict(original_layout(state))
    with torch.inference_mode():
        for ours, theirs in zip(encoder(IMAGE), reference(IMAGE)[1:], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["hugging face", "original"])
def test_a_file_of_an_encoder_alone(published, tmp_path, layout, capsys):
    state = published.state
    if layout == "original":
        state = original_layout(state) | {"head.weight": torch.ones(1000, 256), "head.bias": torch.ones(1000)}
    torch.save(state, tmp_path / "mit_b0.pth")
    model = TASK.build("fpn", encoder="mit_b0")
    TASK.initialize(model, str(tmp_path / "mit_b0.pth"))
    features_agree(model.encoder, published)
    assert "encoder mit_b0" in capsys.readouterr().err


def test_a_file_of_torchvisions_resnet_with_more_bands(tmp_path):
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    model = TASK.build("unet", encoder="resnet18", channels=5)
    TASK.initialize(model, str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.encoder.conv1.weight[:, :3], state["conv1.weight"])
    assert torch.equal(model.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(("arch", "encoder"), [("unet", "mit_b0"), ("deeplabv3", "resnet18")])
def test_a_whole_network_of_the_peer_with_other_classes_and_bands(arch, encoder, tmp_path, capsys):
    kind = {"unet": smp.Unet, "deeplabv3": smp.DeepLabV3}[arch]
    state = kind(encoder, encoder_weights=None, classes=7).state_dict()
    if arch == "deeplabv3":  # as older files name it
        state = {key.replace("decoder.aspp.", "decoder.0."): value for key, value in state.items()}
    torch.save({"model_state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "best.pth")
    model = TASK.build(arch, encoder=encoder, outputs=2, channels=4)
    TASK.initialize(model, str(tmp_path / "best.pth"))
    own, stem = model.state_dict(), f"encoder.{model.encoder.stem}"
    assert torch.equal(own[stem][:, :3], state[stem])
    fresh = "segmentation_head.0.weight, segmentation_head.0.bias"
    assert capsys.readouterr().err.rstrip().endswith(f"new and untrained: {fresh} from {tmp_path / 'best.pth'}")


def test_none_leaves_the_random_start():
    model = TASK.build("pan", encoder="resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    TASK.initialize(model, "none")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_imagenet_for_resnets_is_torchvisions(monkeypatch):
    state = get_model("resnet18", weights=None).state_dict()
    monkeypatch.setattr(weights, "imagenet_state", {"resnet18": state}.get)
    model = TASK.build("linknet", encoder="resnet18", channels=1)
    TASK.initialize(model, "imagenet")
    assert torch.equal(model.encoder.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: get_model("resnet18", weights=None).state_dict(), ("the encoder resnet18", "mit_b0")),
        (lambda: build_encoder("mit_b1").state_dict(), ("the encoder mit_b1", "mit_b0")),
        (lambda: {"some.weight": torch.ones(3)}, ("fits only 0",)),
        (lambda: {"patch_embed1.proj.weight": torch.ones(32, 3, 7, 7)}, ("fits only 0",)),
    ],
)
def test_files_that_do_not_fit_are_refused(content, words, tmp_path):
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        TASK.initialize(TASK.build("unet", encoder="mit_b0"), str(tmp_path / "weights.pth"))
    for word in words:
        assert word in str(error.value)


def test_incomplete_weights_are_refused(published, tmp_path):
    lost = "segformer.encoder.block.1.0.attention.self.value.weight"
    for names in ([lost], [lost, lost.replace("value", "key")], ["segformer.encoder.layer_norm.3.bias"]):
        torch.save({k: v for k, v in published.state.items() if k not in names}, tmp_path / "weights.bin")
        with pytest.raises(ValueError, match="lack 1 of the encoder's tensors"):
            TASK.initialize(TASK.build("unet", encoder="mit_b0"), str(tmp_path / "weights.bin"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lost\.pth"):
        TASK.initialize(TASK.build("unet", encoder="mit_b0"), str(tmp_path / "lost.pth"))


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """The published weights on a web server of this machine, at the address they have on Hugging Face."""
    torch.save(published.state, tmp_path / "pytorch_model.bin")

    class Handler(BaseHTTPRequestHandler):
        body = (tmp_path / "pytorch_model.bin").read_bytes()
        claims = len(body)

        def do_GET(self):
            found = self.path == "/nvidia/mit-b0/resolve/main/pytorch_model.bin"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(self.claims if found else 0))
            self.end_headers()
            self.wfile.write(self.body if found else b"")

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=functools.partial(http.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "HUB", f"http://127.0.0.1:{http.server_address[1]}/nvidia")
    yield SimpleNamespace(handler=Handler, cache=tmp_path / "cache" / "checkpoints" / "segformer_mit_b0.bin")
    http.shutdown()
    http.server_close()
    thread.join()


def test_the_address_is_nvidias():
    assert weights.HUB == "https://huggingface.co/nvidia"


def test_a_download_names_its_license_and_is_kept(server, published, capsys):
    model = TASK.build("unet", encoder="mit_b0")
    TASK.initialize(model, "imagenet")
    features_agree(model.encoder, published)
    err = capsys.readouterr().err
    assert "NVIDIA Source Code License" in err and "non-commercial" in err
    server.handler.body = b""
    assert torch.equal(segformer_state("mit_b0")["norm4.bias"], model.encoder.norm4.bias)  # from the cache


def test_more_bands_keep_the_published_filters(server, published):
    model = TASK.build("unet", encoder="mit_b0", channels=4)
    TASK.initialize(model, "imagenet")
    filters = model.encoder.patch_embed1.proj.weight
    assert filters.shape == (encoder_widths("mit_b0")[1], 4, 7, 7)
    assert torch.equal(filters[:, :3], published.state["segformer.encoder.patch_embeddings.0.proj.weight"])


@pytest.mark.parametrize("failure", ["refused", "missing", "corrupted", "cut short", "damaged in the cache", "unsafe"])
def test_a_failed_download_names_the_alternatives(server, failure, capsys, monkeypatch):
    name = "mit_b0"
    if failure == "refused":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            monkeypatch.setattr(weights, "HUB", f"http://127.0.0.1:{closed.getsockname()[1]}/nvidia")
    elif failure == "missing":
        name = "mit_b1"
    elif failure == "corrupted":
        server.handler.body = server.handler.body[:-20] + b"x" * 20
    elif failure == "cut short":
        server.handler.body = server.handler.body[:5000]
    elif failure == "damaged in the cache":
        server.cache.parent.mkdir(parents=True)
        server.cache.write_bytes(server.handler.body[:700])
    else:
        server.cache.parent.mkdir(parents=True)
        torch.save({"norm4.bias": functools.partial(print, "code")}, server.cache)
    assert exit_code(lambda: bool(segformer_state(name))) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2 and "code" not in out  # the license, the error
    words = [name, weights.HUB, "--weights none", "--weights PATH"]
    if failure in ("damaged in the cache", "unsafe"):
        words.append(str(server.cache))
    for word in words:
        assert word in lines[1]
    if failure in ("corrupted", "cut short"):
        assert not list(server.cache.parent.glob("*segformer*")), "a broken file must not stay in the cache"


def test_the_small_network_has_no_published_weights_but_starts_from_a_checkpoint(tmp_path):
    arguments = {"outputs": 2, "widths": [8, 16], "stem": 2}
    first, second = TASK.build("unet_small", **arguments), TASK.build("unet_small", **arguments)
    with pytest.raises(ValueError, match="--arch unet"):
        TASK.initialize(first, "imagenet")
    torch.save(first.state_dict(), tmp_path / "small.pt")
    TASK.initialize(second, str(tmp_path / "small.pt"))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
