"""Encoders by their name on the Hugging Face hub or as a folder: wav2vec2, HuBERT and WavLM hear, ViT, CLIP, DINO see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from moodal.core.errors import check
from moodal.core.spec import Modality
from moodal.data.corpus import FeatureRecipe
from moodal.features.audio_base import AudioExtractor
from moodal.features.face import FaceMesh, FaceSettings, FaceTrack, Film
from moodal.features.frames import Frame
from moodal.features.hub_files import HubFolder, find_encoder, load_encoder, load_processor

#: Pictures encoded at once.
BATCH = 16
#: A face is cut out with this share of its size on each side.
AROUND = 0.2


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """Settings of a speech encoder. ``model``: its name on the hub, or a folder.

    ``layer``: whose states are taken: 0 is what enters the first layer, -1 the last. ``seconds``: longer sound is
    encoded in pieces of so much. ``sample_rate``, ``hop`` (samples a step) and ``revision`` (which weights) are those of
    the model: empty or 0 to take them from it, else it must have them.
    """

    model: str = ""
    layer: int = -1
    seconds: float = 20.0
    sample_rate: int = 0
    hop: int = 0
    revision: str = ""

    def __post_init__(self) -> None:
        check(bool(self.model), "no model is named; set model to a name on the Hugging Face hub or a folder.")
        check(self.seconds >= 1, f"seconds is {self.seconds}; pieces of 1 second or more make sense.")


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Settings(SpeechSettings):
    """Settings of ``wav2vec2``."""

    model: str = "facebook/wav2vec2-base"


@dataclass(frozen=True, kw_only=True)
class HubertSettings(SpeechSettings):
    """Settings of ``hubert``."""

    model: str = "facebook/hubert-base-ls960"


@dataclass(frozen=True, kw_only=True)
class WavLMSettings(SpeechSettings):
    """Settings of ``wavlm``."""

    model: str = "microsoft/wavlm-base"


class SpeechEncoder(AudioExtractor):
    """Mono sound -> (T, width) states of one layer; a subclass names the family.

    Raises MoodalError when the encoder cannot be found or is of another family.
    """

    version: ClassVar[str] = "1"
    several_processes: ClassVar[bool] = False
    model_class: ClassVar[str]

    def __init__(self, cfg: SpeechSettings | None = None) -> None:
        asked = self.Config() if cfg is None else cfg
        self._folder = find_encoder(asked.model, asked.revision)
        config = self._folder.config
        _need_kind(self._folder, (self.name,))
        layers = int(config["num_hidden_layers"])
        check(
            -layers - 1 <= asked.layer <= layers,
            f"layer is {asked.layer}, and encoder {asked.model} has {layers}; give {-layers - 1} to {layers}.",
        )
        own = {
            "sample_rate": int(self._folder.processor.get("sampling_rate", 16000)),
            "hop": prod(config["conv_stride"]),
            "revision": self._folder.revision,
        }
        for name in ("sample_rate", "hop"):
            wanted = asdict(asked)[name]
            check(wanted in (0, own[name]), f"{name} is {wanted}, and encoder {asked.model} has {own[name]}; leave it.")
        super().__init__(replace(asked, **own))

    @property
    def width(self) -> int:
        """D, the numbers of a step."""
        return int(self._folder.config["hidden_size"])

    @cached_property
    def _field(self) -> int:
        """Samples that the first step hears."""
        field, stride = 1, 1
        for kernel, step in zip(self._folder.config["conv_kernel"], self._folder.config["conv_stride"], strict=True):
            field, stride = field + (kernel - 1) * stride, stride * step
        return field

    @cached_property
    def _model(self) -> Any:
        return load_encoder(self._folder, self.model_class)

    @torch.inference_mode()
    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) float samples at the recipe's rate -> (T, width) float32 and (T,) seconds; no steps for no sound."""
        cfg = self.cfg
        if not len(wave) or not np.any(wave):
            return self.nothing()
        wave = wave.astype(np.float32)
        if self._folder.processor.get("do_normalize", True):
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        # Pieces begin at whole steps; each hears as far as its last step needs.
        piece = int(cfg.seconds * cfg.sample_rate) // cfg.hop * cfg.hop
        steps = max(1, 1 + (len(wave) - self._field) // cfg.hop)
        states = []
        for start in range(0, steps * cfg.hop, piece):
            part = wave[start : start + piece + self._field - cfg.hop]
            part = np.pad(part, (0, max(0, self._field - len(part))))
            hidden = self._model(torch.from_numpy(part)[None], output_hidden_states=True).hidden_states
            states.append(hidden[cfg.layer][0].numpy())
        values = np.concatenate(states)[:steps]
        return values, (cfg.hop * np.arange(len(values)) + self._field / 2) / cfg.sample_rate

    def need_packages(self) -> None:
        """Load the model, so that what is wrong with it is told at once."""
        assert self._model is not None


class Wav2Vec2(SpeechEncoder):
    """wav2vec 2.0: Baevski et al., NeurIPS 2020."""

    name: ClassVar[str] = "wav2vec2"
    Config: ClassVar[type[Any]] = Wav2Vec2Settings
    model_class: ClassVar[str] = "Wav2Vec2Model"


class Hubert(SpeechEncoder):
    """HuBERT: Hsu et al., IEEE/ACM TASLP 29, 2021."""

    name: ClassVar[str] = "hubert"
    Config: ClassVar[type[Any]] = HubertSettings
    model_class: ClassVar[str] = "HubertModel"


class WavLM(SpeechEncoder):
    """WavLM: Chen et al., IEEE JSTSP 16(6), 2022."""

    name: ClassVar[str] = "wavlm"
    Config: ClassVar[type[Any]] = WavLMSettings
    model_class: ClassVar[str] = "WavLMModel"


#: Families of image encoders -> the class that loads the part that sees.
VISION_MODELS = {
    "vit": "ViTModel", "clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel", "dinov2": "Dinov2Model",
    "dinov3_vit": "DINOv3ViTModel", "siglip": "SiglipVisionModel", "siglip_vision_model": "SiglipVisionModel",
    "deit": "DeiTModel", "beit": "BeitModel",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HubVisionSettings:
    """Settings of ``hub_vision``. ``hop``: seconds between frames; ``model``: its name on the hub, or a folder.

    ``region``: the main speaker's face (with mediapipe), or the whole frame. ``pooling``: the mean over the picture's
    tokens, or the first token. ``revision``: which weights, empty to take what is there.
    """

    hop: float = 0.1
    model: str = ""
    region: Literal["face", "frame"] = "face"
    pooling: Literal["mean", "first"] = "mean"
    revision: str = ""

    def __post_init__(self) -> None:
        check(self.hop > 0, f"hop is {self.hop}; give the seconds between two frames.")
        check(bool(self.model), "no model is named; set model to a name on the Hugging Face hub or a folder.")
        check(self.region in ("face", "frame"), f"region is '{self.region}'; give face or frame.")
        check(self.pooling in ("mean", "first"), f"pooling is '{self.pooling}'; give mean or first.")


class HubVision:
    """Frames -> (T, width): each face, or frame, as an image encoder sees it.

    Raises MoodalError when the encoder cannot be found or is of a family that is not in ``VISION_MODELS``.
    """

    name: ClassVar[str] = "hub_vision"
    version: ClassVar[str] = "1"
    modality: ClassVar[Modality] = "vision"
    Config: ClassVar[type[Any]] = HubVisionSettings

    def __init__(self, cfg: HubVisionSettings) -> None:
        self._folder = find_encoder(cfg.model, cfg.revision)
        _need_kind(self._folder, tuple(VISION_MODELS))
        self.cfg = replace(cfg, revision=self._folder.revision)

    def recipe(self) -> FeatureRecipe:
        """Name, version and settings, as the manifest keeps them."""
        return FeatureRecipe(name=self.name, version=self.version, width=self.width, settings=asdict(self.cfg))

    @property
    def width(self) -> int:
        """D, the numbers of a step."""
        config = self._folder.config
        return int(config.get("vision_config", config)["hidden_size"])

    def __call__(self, frames: Iterable[Frame]) -> FaceTrack:
        """Encode the main speaker's face in every frame, or every frame."""
        return self._faces(frames) if self.cfg.region == "face" else self._frames(frames)

    def _frames(self, frames: Iterable[Frame]) -> FaceTrack:
        work, times = _Batches(self), []
        for frame in frames:
            times.append(frame.time)
            work.add(frame.picture)
        values = work.done()
        note = "" if len(values) else "no frame in the video"
        count = len(values)
        return FaceTrack(values, np.array(times), np.ones(count, np.float32), np.zeros(count, np.int64), note)

    def _faces(self, frames: Iterable[Frame]) -> FaceTrack:
        """All faces are encoded as they come, so that no picture is kept; whose they are is known in the end."""
        work, film = _Batches(self), Film()
        for seen in FaceMesh(FaceSettings(hop=self.cfg.hop)).watch(frames):
            film.add(seen)
            for face in seen.faces:
                work.add(_cut(seen.frame.picture, face))
        return film.speaker(work.done())

    @cached_property
    def _model(self) -> Any:
        return load_encoder(self._folder, VISION_MODELS[self._folder.kind])

    @cached_property
    def _processor(self) -> Any:
        return load_processor(self._folder, "AutoImageProcessor", backend="pil")

    @torch.inference_mode()
    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W, 3) uint8 RGB pictures of any sizes -> (N, width) float32."""
        pixels = self._processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
        tokens = self._model(pixel_values=pixels["pixel_values"]).last_hidden_state
        pooled = tokens.mean(dim=1) if self.cfg.pooling == "mean" else tokens[:, 0]
        return pooled.float().numpy()


class _Batches:
    """Pictures encoded ``BATCH`` at a time."""

    def __init__(self, encoder: HubVision) -> None:
        self._encoder = encoder
        self._waiting: list[np.ndarray] = []
        self._rows = [np.zeros((0, encoder.width), np.float32)]

    def add(self, picture: np.ndarray) -> None:
        self._waiting.append(picture)
        if len(self._waiting) == BATCH:
            self._encode()

    def done(self) -> np.ndarray:
        """(N, width): all pictures, in order."""
        if self._waiting:
            self._encode()
        return np.concatenate(self._rows)

    def _encode(self) -> None:
        self._rows.append(self._encoder.encode(self._waiting))
        self._waiting = []


def _cut(picture: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The square around a face (478, 3); what of it lies outside the picture is black."""
    low, high = face[:, :2].min(axis=0), face[:, :2].max(axis=0)
    half = max(1, int((0.5 + AROUND) * float((high - low).max())))
    x, y = (round(float(value)) for value in (low + high) / 2)
    padded = np.zeros((2 * half, 2 * half, 3), np.uint8)
    height, width = picture.shape[:2]
    left, top, right, bottom = max(0, x - half), max(0, y - half), min(width, x + half), min(height, y + half)
    if left < right and top < bottom:
        inside = picture[top:bottom, left:right]
        padded[top - y + half : bottom - y + half, left - x + half : right - x + half] = inside
    return padded


def _need_kind(folder: HubFolder, kinds: Sequence[str]) -> None:
    check(
        folder.kind in kinds,
        f"encoder {folder.name} is of the type '{folder.kind}'; expected {' or '.join(kinds)}; name another "
        "encoder, or the extractor made for it.",
    )
