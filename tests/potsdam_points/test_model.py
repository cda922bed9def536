import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from common.inference.predictor import Cut, Predictor
from common.networks.checkpoint import ModelCard
from common.networks.precision import Precision
from potsdam_points.labels import CLASSES, PALETTE
from potsdam_points.model import recognize
from potsdam_points.task import TASK

NETWORKS = [
    ("resnet18", {"decoder": "plain"}), ("resnet18", {"decoder": "skip"}),
    ("unet_small", {"widths": [8, 8, 16, 16, 16], "stem": 2, "upsample": 2}),
    ("small_unet", {"widths": [8, 8, 16, 16, 16]}),
]  # fmt: skip


class Original(nn.Module):
    """The published network, written down from its description with torchvision's blocks: an independent reference."""

    def __init__(self):
        super().__init__()
        parts = list(resnet18(weights=None).children())
        self.encoder_conv1, self.encoder_bn1 = parts[0], parts[1]
        self.encoder_layer1, self.encoder_layer2, self.encoder_layer3, self.encoder_layer4 = parts[4:8]
        layers = []
        for inputs, outputs in ((512, 256), (256, 128), (128, 64), (64, 32)):
            layers += [nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(32, 7, kernel_size=3, padding=1))

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.encoder_bn1(self.encoder_conv1(x))), 3, stride=2, padding=1)
        x = self.encoder_layer4(self.encoder_layer3(self.encoder_layer2(self.encoder_layer1(x))))
        return F.interpolate(self.decoder(x), size=(300, 300), mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    network = Original()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_the_originals_checkpoints_give_its_logits(original, tmp_path, wrap):
    torch.save(wrap(original.state_dict()), tmp_path / "best_model.pth")
    network, card = TASK.load(tmp_path / "best_model.pth")
    image = torch.rand(2, 3, 150, 150)
    with torch.inference_mode():
        assert torch.allclose(network(image), original(image), atol=1e-4)
    assert (card.scale, card.classes, TASK.tile_of(card)) == (0.5, CLASSES, 300)


def test_the_undefined_class_is_dropped_at_inference(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "best_model.pth")
    predictor = Predictor.load(TASK, [tmp_path / "best_model.pth"], Precision(torch.device("cpu"), None), Cut(300))
    image = torch.rand(1, 3, 300, 300)
    with torch.inference_mode():
        expected = original(F.avg_pool2d(image, 2))[:, :6].softmax(1)[0]
    assert torch.allclose(torch.from_numpy(predictor(image[0].numpy())), expected, atol=1e-4)


@pytest.mark.parametrize(("arch", "arch_args"), NETWORKS)
@pytest.mark.parametrize("size", [(150, 150), (33, 70), (1, 1), (64, 96)])
def test_any_size_gives_logits_at_twice_its_size(arch, arch_args, size):
    network = TASK.build(arch, outputs=6, **arch_args).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, *size)).shape == (1, 6, 2 * size[0], 2 * size[1])


@pytest.mark.parametrize(("arch", "arch_args"), NETWORKS)
def test_every_weight_gets_a_gradient_in_a_batch_of_one(arch, arch_args):
    network = TASK.build(arch, outputs=6, **arch_args).train()
    network(torch.rand(1, 3, 64, 64)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_padding_is_cut_off_again():
    network = TASK.build("resnet18", outputs=6, decoder="skip").eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        padded = F.pad(image[:, :, :, :20], (0, 12, 0, 0), mode="replicate")
        assert torch.allclose(network(image[:, :, :, :20]), network(padded)[..., :40], atol=1e-5)


def test_state_dicts_are_recognized():
    for arch, arch_args in NETWORKS[:2]:
        state = TASK.build(arch, outputs=6, **arch_args).state_dict()
        assert recognize(state) == (arch, {"outputs": 6, "upsample": 2, **arch_args})
    assert recognize({"conv.weight": torch.zeros(1)}) is None


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ValueError, match="unknown network 'vgg'"):
        TASK.build("vgg")
    with pytest.raises(ValueError, match="unknown decoder"):
        TASK.build("resnet18", decoder="deep")
    torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds none of this task's networks"):
        TASK.load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="--arch resnet18"):
        TASK.initialize(TASK.build("unet_small"), "imagenet")


def test_weights_of_another_head_leave_the_head_new(tmp_path, capsys, original):
    torch.save(original.state_dict(), tmp_path / "seven.pt")
    network = TASK.build("resnet18", outputs=6)
    TASK.initialize(network, str(tmp_path / "seven.pt"))
    assert torch.equal(network.encoder_conv1.weight, original.encoder_conv1.weight)
    assert "decoder.12" in capsys.readouterr().err


def test_card_of_this_task():
    card = ModelCard(TASK, "resnet18", {"decoder": "skip"}, CLASSES, PALETTE)
    assert TASK.tile_of(card) == 512
