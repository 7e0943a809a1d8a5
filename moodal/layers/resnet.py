"""Residual networks for pictures, and their ImageNet weights by name or file. Shapes: N rows, H x W pixels.

Source  He et al., CVPR 2016; the stride of a block is at its 3 x 3 convolution, as in the usual ImageNet weights.
Weights a name on the Hugging Face hub (for example timm/resnet50.tv_in1k or microsoft/resnet-50) or a local file, with
        parameters named as torchvision and timm name them, or as transformers does.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moodal.core.errors import MissingExtra, MoodalError, check

State = dict[str, Tensor]
#: blocks by stage of the network with 50 layers.
RESNET50 = (3, 4, 6, 3)
#: how much wider the output of a block is than what its 3 x 3 convolution sees.
EXPANSION = 4
#: the only file of a hub repository that is read.
HUB_FILE = "model.safetensors"

#: (names of torchvision and timm, and of transformers, as patterns) -> ours; what none of them matches is a head.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"conv1\.(.+)", r"stem.0.\1"),
    (r"bn1\.(.+)", r"stem.1.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"stages.<\1>.\2.convolutions.<\3>.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"stages.<\1>.\2.norms.<\3>.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.(.+)", r"stages.<\1>.\2.shortcut.\3"),
    (r"(?:resnet\.)?embedder\.embedder\.convolution\.(.+)", r"stem.0.\1"),
    (r"(?:resnet\.)?embedder\.embedder\.normalization\.(.+)", r"stem.1.\1"),
    (r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.(.+)", r"stages.\1.\2.convolutions.\3.\4"),
    (r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.(.+)", r"stages.\1.\2.norms.\3.\4"),
    (r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.(.+)", r"stages.\1.\2.shortcut.0.\3"),
    (r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.(.+)", r"stages.\1.\2.shortcut.1.\3"),
)  # fmt: skip
_HEADS = ("fc.", "classifier.")


class Residual(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with batch norm, added to what came in (a map of it where sizes differ)."""

    def __init__(self, channels: int, inner: int, *, stride: int) -> None:
        super().__init__()
        out = EXPANSION * inner
        self.convolutions = nn.ModuleList(
            (
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
                nn.Conv2d(inner, out, 1, bias=False),
            )
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (inner, inner, out))
        plain = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 inner, H / stride, W / stride)."""
        inner = maps
        for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            inner = norm(convolution(inner))
            if place < 2:
                inner = inner.relu()
        return (inner + self.shortcut(maps)).relu()


class ResNet(nn.Module):
    """The network without its pooling and classifier: ``stem``, then ``stages``.

    ``blocks``: by stage; ``width``: channels of the stem (64 in the published networks); ``last_stride``: of the last
    stage, 1 for a finer map than the usual 2. ``width`` of the object: channels of the last map.
    """

    def __init__(self, *, blocks: Sequence[int] = RESNET50, width: int = 64, last_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages, channels = nn.ModuleList(), width
        for number, count in enumerate(blocks):
            stride = 1 if number == 0 else last_stride if number == len(blocks) - 1 else 2
            inner = width * 2**number
            parts = [
                Residual(channels if i == 0 else EXPANSION * inner, inner, stride=stride if i == 0 else 1)
                for i in range(count)
            ]
            self.stages.append(nn.Sequential(*parts))
            channels = EXPANSION * inner
        self.width = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, width, H / 32, W / 32); twice as fine with ``last_stride`` 1."""
        maps = self.stem(pixels)
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def load_published(self, state: Mapping[str, Tensor], name: str) -> None:
        """Take weights named as torchvision, timm or transformers name them; ``name`` is for messages.

        Raises ``MoodalError`` naming the first tensor that is missing, unknown or of another shape.
        """
        given, own = ours(state, name), self.state_dict()
        own = {key: value for key, value in own.items() if not key.endswith("num_batches_tracked")}
        for key in sorted(set(own) ^ set(given)):
            word = "lack" if key in own else "hold in excess"
            raise MoodalError(
                f"the weights {name} {word} {key}; they are of another network than the settings describe."
            )
        for key, value in given.items():
            check(
                value.shape == own[key].shape,
                f"{key} has shape {tuple(value.shape)} in the weights {name} and {tuple(own[key].shape)} in the network; "
                "they are of another network than the settings describe.",
            )
        self.load_state_dict(given, strict=False)


def ours(state: Mapping[str, Tensor], name: str) -> State:
    """Published tensors under our names, without the classifier and the counters of batches."""
    found: State = {}
    for key, value in state.items():
        if key.startswith(_HEADS) or key.endswith("num_batches_tracked"):
            continue
        match = next(((m, new) for old, new in _NAMES if (m := re.fullmatch(old, key))), None)
        check(
            match is not None,
            f"the weights {name} hold {key}, which no residual network of ours has; name other weights.",
        )
        assert match is not None
        # numbers in angle brackets count from 1 there and from 0 here
        found[re.sub(r"<(\d)>", lambda n: str(int(n[1]) - 1), match[0].expand(match[1]))] = value
    return found


def read_weights(name: str) -> State:
    """The tensors of a local .safetensors, .pt or .pth file, or of ``model.safetensors`` of a hub repository.

    Raises ``MoodalError`` if there is no such thing or it cannot be read; code in a file is never run.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = _from_hub(name)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise MoodalError(
            f"{path} cannot be read as weights ({type(error).__name__}); fetch or save it again."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    fits = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    check(fits, f"{path} holds no mapping of names to tensors; save the network's state dict.")
    return dict(state)


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise MissingExtra("transformers", "text") from error
    what = "give a local file of weights, go online once, or set model.weights to null for random ones"
    try:
        return Path(hf_hub_download(name, HUB_FILE))
    except HFValidationError as error:
        raise MoodalError(f"weights {name} are neither a file nor a valid hub name; {what}.") from error
    except OSError as error:  # not found, offline, no access: all are kinds of OSError
        raise MoodalError(
            f"weights {name} are not on this machine and the hub did not give {HUB_FILE} ({type(error).__name__}); {what}."
        ) from error
