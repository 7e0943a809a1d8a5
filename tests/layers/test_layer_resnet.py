"""Our residual network is the usual one: as transformers computes it, and with the names torchvision gives it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from moodal.core.errors import MoodalError
from moodal.layers.resnet import RESNET50, ResNet, ours, read_weights


@pytest.fixture(scope="module")
def published():
    """transformers' network of two blocks a stage, with statistics that are not those of the start."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[2, 1, 2, 1], layer_type="bottleneck"
    )
    model = transformers.ResNetModel(config)
    for name, value in model.state_dict().items():
        if "normalization" in name and value.dtype.is_floating_point:
            value.copy_(torch.rand_like(value) + 0.5)
    return model.eval()


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state under the names of torchvision, with its classifier."""
    named = {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "stem":
            name = f"{'conv1' if parts[1] == '0' else 'bn1'}.{parts[2]}"
        else:
            _, stage, block, kind, place, rest = parts
            kinds = {
                "convolutions": f"conv{int(place) + 1}",
                "norms": f"bn{int(place) + 1}",
                "shortcut": f"downsample.{place}",
            }
            name = f"layer{int(stage) + 1}.{block}.{kinds[kind]}.{rest}"
        named[name] = value
    return named


def test_it_computes_what_transformers_computes(published):
    network = ResNet(blocks=(2, 1, 2, 1), width=8)
    network.load_published(published.state_dict(), "test")
    pixels = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(pixels), published(pixels).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_weights_named_as_by_torchvision_load(tmp_path):
    torch.manual_seed(1)
    one, two = ResNet(blocks=(1, 2), width=4), ResNet(blocks=(1, 2), width=4)
    save_file(torchvision_names(one.state_dict()), tmp_path / "weights.safetensors")
    torch.save({"state_dict": torchvision_names(one.state_dict())}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        two.load_published(read_weights(str(tmp_path / name)), name)
        pixels = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(two.eval()(pixels), one.eval()(pixels))


def test_the_names_of_resnet50_are_torchvisions():
    with torch.device("meta"):
        network = ResNet()
    names = set(torchvision_names(network.state_dict()))
    assert sum(p.numel() for p in network.parameters()) == 23_508_032 and RESNET50 == (3, 4, 6, 3)
    known = {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer3.5.conv2.weight",
        "layer4.2.bn3.bias",
    }
    assert known <= names and len([name for name in names if name.endswith("weight")]) == 107  # 53 + 53 + fc


@pytest.mark.parametrize(("last", "size"), [(2, (2, 1)), (1, (4, 2))])
def test_the_last_stride_decides_how_fine_the_map_is(last, size):
    network = ResNet(blocks=(1, 1, 1, 1), width=4, last_stride=last).eval()
    assert network(torch.zeros(1, 3, 64, 32)).shape == (1, 128, *size) and network.width == 128


def test_faults_of_weights_are_sentences(tmp_path, published):
    network = ResNet(blocks=(1, 1), width=4)
    state = torchvision_names(network.state_dict())
    with pytest.raises(MoodalError, match=r"weights x lack stages\.1\.0\.norms\.2\.bias"):
        network.load_published({k: v for k, v in state.items() if k != "layer2.0.bn3.bias"}, "x")
    with pytest.raises(MoodalError, match=r"weights x hold layer9\.0\.thing"):
        ours({"layer9.0.thing": torch.zeros(1)}, "x")
    with pytest.raises(MoodalError, match=r"stem\.0\.weight has shape \(1,\) in the weights x"):
        network.load_published({**state, "conv1.weight": torch.zeros(1)}, "x")
    with pytest.raises(MoodalError, match=r"hold in excess|lack"):
        network.load_published(published.state_dict(), "x")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(MoodalError, match="cannot be read as weights"):
        read_weights(str(tmp_path / "broken.safetensors"))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(MoodalError, match="holds no mapping of names to tensors"):
        read_weights(str(tmp_path / "list.pth"))
    with pytest.raises(MoodalError, match="neither a file nor a valid hub name"):
        read_weights("no/such/file.pth")
    with pytest.raises(MoodalError, match="not on this machine"):
        read_weights("nobody/nothing-of-this-name")
