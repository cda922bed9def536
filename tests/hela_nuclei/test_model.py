from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from common.inference.predictor import Cut, Predictor
from common.networks.precision import choose_precision
from hela_nuclei.model import recognize
from hela_nuclei.predict import NucleiPredictor
from hela_nuclei.task import TASK


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class SourceUp(nn.Module):
    """The notebook's decoder stage, its swapped padding included: rows and columns miss one each at 700 x 1100."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv1, self.conv2 = block(inputs, outputs), block(outputs, outputs)

    def forward(self, low, skip):
        low = self.upsample(low)
        first, second = skip.shape[2] - low.shape[2], skip.shape[3] - low.shape[3]
        return self.conv2(self.conv1(torch.cat([skip, F.pad(low, (first, 0, second, 0))], 1)))


class SourceUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(block(1, 16), block(16, 16))
        for name, (a, b) in {"conv2": (16, 32), "conv3": (32, 64), "conv4": (64, 128)}.items():
            setattr(self, name, nn.Sequential(nn.MaxPool2d(2), block(a, b), block(b, b)))
        self.deconv1, self.deconv2, self.deconv3 = SourceUp(128, 64), SourceUp(64, 32), SourceUp(32, 16)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x):
        a = self.conv1(x)
        b = self.conv2(a)
        c = self.conv3(b)
        x = self.deconv3(self.deconv2(self.deconv1(self.conv4(c), c), b), a)
        return self.out(x)


class SourceOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(64, 64, 2, stride=2)
        self.conv, self.final = block(64, 64), nn.Conv2d(64, 1, 1)

    def forward(self, x, image):
        x = self.upsample(x)
        first, second = image.shape[2] - x.shape[2], image.shape[3] - x.shape[3]
        return self.final(self.conv(F.pad(x, (first, 0, second, 0))))


class SourceUNetResnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = resnet18(weights=None)  # with its unused pooling and classifier, as in the notebook's files
        self.encoder.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.deconv1, self.deconv2, self.deconv3 = SourceUp(512, 256), SourceUp(256, 128), SourceUp(128, 64)
        self.out = SourceOut()

    def forward(self, image):
        e = self.encoder
        a = e.layer1(e.relu(e.bn1(e.conv1(image))))
        b = e.layer2(a)
        c = e.layer3(b)
        return self.out(self.deconv3(self.deconv2(self.deconv1(e.layer4(c), c), b), a), image)


def lively(network):
    """Random weights and statistics, as after a training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("source", [SourceUNet, SourceUNetResnet])
def test_checkpoints_of_the_notebook_give_the_same_logits(source, tmp_path):
    torch.manual_seed(0)
    reference = lively(source())
    state = reference.state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    files = {"plain": state, "nested": {"model_state_dict": state, "epoch": 3}, "parallel": wrapped}
    for name, payload in files.items():
        torch.save(payload, tmp_path / f"{name}.pth")
    networks = {name: TASK.load(tmp_path / f"{name}.pth")[0] for name in files}
    image = torch.rand(1, 1, 700, 1100)
    with torch.inference_mode():
        expected = reference(image)
        assert torch.allclose(networks["plain"](image), expected, atol=1e-4)
        small = image[..., :92, :124]  # odd on the way down as the whole is: 23 x 31 at a quarter
        expected = reference(small)
        for network in networks.values():
            assert torch.equal(network(small), networks["plain"](small))
    # The commands see no other picture than the network alone: no padding, no tiles.
    shared = Predictor.load(TASK, [tmp_path / "plain.pth"], choose_precision("cpu", "off"))
    prediction, card = NucleiPredictor(shared)(small[0, 0].numpy()), shared.card
    np.testing.assert_allclose(prediction.probability, expected.sigmoid()[0, 0].numpy(), atol=1e-5)
    assert (card.threshold, prediction.distance) == (0.5, None)


def test_sizes_and_parameters():
    networks = {arch: TASK.build(arch, channels=1).eval() for arch in TASK.architectures}
    assert round(sum(p.numel() for p in networks["unet"].parameters()) / 1e6, 2) == 0.48
    with torch.inference_mode():
        for arch, network in networks.items():
            for height, width in ((33, 47), (64, 96), (71, 109), (16, 17)):
                assert network(torch.rand(1, 1, height, width)).shape == (1, 1, height, width), arch
        assert networks["unet"](torch.rand(1, 1, 701, 1099)).shape == (1, 1, 701, 1099)
    assert TASK.build("unet", outputs=2).train()(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_foreign_or_unfit_checkpoints_are_refused(tmp_path):
    cases = {
        "three channels": (TASK.build("unet", channels=3).state_dict(), "3 channels"),
        "another network": (resnet18(weights=None).state_dict(), "none of this task's networks"),
        "half": ({k: v for k, v in TASK.build("unet").state_dict().items() if "deconv2" not in k}, "does not fit"),
        "no weights": ({"epoch": 3}, "no weights"),
    }
    for name, (state, words) in cases.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=words):
            TASK.load(tmp_path / f"{name}.pth")
    assert recognize({}) is None


def test_one_channel_takes_the_sum_of_the_rgb_filters():
    rgb = resnet18(weights=None)
    network = TASK.build("unet_resnet18").eval()
    replace(TASK, published=lambda name: rgb.state_dict()).initialize(network, "imagenet")
    assert torch.allclose(network.encoder.conv1.weight, rgb.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(network.encoder.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="--weights none"):
        TASK.initialize(TASK.build("unet"), "imagenet")


def test_predictions_of_any_size_scale_and_several_networks():
    torch.manual_seed(0)
    card = TASK.card("unet", {"outputs": 2, "channels": 1}, maps=("distance",))
    networks = [(lively(TASK.build("unet", outputs=2)), card) for _ in range(2)]

    def nuclei(networks, tile=0, tta=False, **options):
        cut = Cut(tile, tta=tta)
        return NucleiPredictor(Predictor(networks, choose_precision("cpu", "off"), cut=cut, threshold=0.5, **options))

    image = np.random.default_rng(0).random((37, 90), np.float32)
    one, two, both = (nuclei(n)(image) for n in (networks[:1], networks[1:], networks))
    np.testing.assert_allclose(both.probability, (one.probability + two.probability) / 2, atol=1e-5)
    for size in ((5, 7), (31, 200), (1, 1)):
        result = nuclei(networks, tile=64, scale=0.7, tta=True)(np.ones(size, np.float32))
        assert result.probability.shape == result.distance.shape == size
    flipped, image = nuclei(networks, tta=True), image[:32, :64]
    np.testing.assert_allclose(
        flipped(image[:, ::-1].copy()).probability, flipped(image).probability[:, ::-1], atol=1e-5
    )
    other = replace(card, maps=(), arch_args={"outputs": 1, "channels": 1})
    with pytest.raises(ValueError, match="cannot be averaged: they predict other maps"):
        nuclei([*networks, (lively(TASK.build("unet")), other)])
    with pytest.raises(ValueError, match="cannot be averaged: their classes differ"):
        nuclei([*networks, (networks[0][0], replace(card, classes=["background", "cell"]))])
