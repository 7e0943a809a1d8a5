"""The settings of a run. Frozen after parsing; what the data know (widths, lengths, sizes) is never in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from moodal.core.errors import check
from moodal.core.spec import MODALITIES, Modality


@dataclass(frozen=True, kw_only=True)
class TextData:
    """How text enters.

    ``mode``: "frozen" states of ``encoder`` computed once and cached; "finetune": token ids, the encoder is part of
    the model; "features": the text features stored with the corpus; "tokens": the token ids stored with the corpus,
    fed to ``encoder`` as in "finetune". ``encoder``: "minilm" (offline default), a Hugging Face name or a local path.
    """

    mode: Literal["frozen", "finetune", "features", "tokens"] = "frozen"
    encoder: str = "minilm"
    max_tokens: int = 50

    def __post_init__(self) -> None:
        check(self.max_tokens >= 2, f"max_tokens is {self.max_tokens}; at least 2 are needed.")


@dataclass(frozen=True, kw_only=True)
class StreamData:
    """How audio or vision enter: averaged over ``pool`` steps, cut to ``limit`` steps, standardised.

    ``root``: take the signed square root first, for skewed intensities. ``normalise``: "train" by mean and deviation of
    the training split, "none" as stored. ``statistics``: append to each step what sums up its whole clip (mean,
    deviation, change and quantiles of each channel, length; of a voice also pitch, pauses, ...), standardised.
    """

    limit: int | None = None
    pool: int = 1
    root: bool = False
    normalise: Literal["none", "train"] = "train"
    statistics: bool = False

    def __post_init__(self) -> None:
        check(self.pool >= 1, f"pool is {self.pool}; it must be 1 or more.")
        check(self.limit is None or self.limit >= 1, f"limit is {self.limit}; it must be 1 or more, or null.")


#: Kinds of damage (data/degrade.py).
Kind: TypeAlias = Literal["frames", "modality", "block", "noise", "blur", "freeze"]


@dataclass(frozen=True, kw_only=True)
class MissingData:
    """What is taken out of the data, in training, validation and test alike; ``rate`` 0: nothing.

    ``kind``: single steps ("frames", the published protocol), whole modalities of a clip, one block of steps, Gaussian
    noise, a stream smoothed over time, a stream that stands still from a step on. ``rate``: the share of it, from 0 to
    1; of noise its share in the power of the sum. ``seed``: of the draws; 111 stands for the published masks.
    ``modalities``: the streams it happens to (empty: all that the kind is meant for).
    """

    kind: Kind = "frames"
    rate: float = 0.0
    seed: int = 111
    modalities: tuple[Modality, ...] = ()

    def __post_init__(self) -> None:
        check(0 <= self.rate <= 1, f"rate is {self.rate}; it is a share from 0 to 1.")
        check(self.kind != "noise" or self.rate < 1, "rate is 1.0; noise alone has no signal, give less than 1.")
        check(self.seed >= 0, f"seed is {self.seed}; it cannot be negative.")
        known = all(m in MODALITIES for m in self.modalities) and len(set(self.modalities)) == len(self.modalities)
        check(known, f"modalities is {list(self.modalities)}; give some of {', '.join(MODALITIES)}, each once.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data are and how they enter."""

    root: str | None = None
    text: TextData = field(default_factory=TextData)
    audio: StreamData = field(default_factory=StreamData)
    vision: StreamData = field(default_factory=StreamData)
    #: "stored": only what the corpus brings; "measured": sentences made from measurements where it brings none.
    explainer: Literal["stored", "measured"] = "measured"
    missing: MissingData = field(default_factory=MissingData)


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Numbers for a group of parameters; None inherits from ``train``."""

    rate: float | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        check(self.rate is None or self.rate > 0, f"rate is {self.rate}; it must be positive, or null.")
        check(self.decay is None or self.decay >= 0, f"decay is {self.decay}; it cannot be negative.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Numbers for a stage; None inherits from ``train``."""

    epochs: int | None = None
    patience: int | None = None
    select: str | None = None

    def __post_init__(self) -> None:
        check(self.epochs is None or self.epochs >= 0, f"epochs is {self.epochs}; it cannot be negative.")
        known = self.patience is None or self.patience >= 1
        check(known, f"patience is {self.patience}; it must be 1 or more, or null.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How training goes. ``batch`` is the global batch over all processes and accumulated parts."""

    epochs: int = 30
    batch: int = 32
    accumulate: int = 1
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    rate: float = 1e-3
    decay: float = 1e-2
    schedule: Literal["constant", "cosine", "linear", "step"] = "cosine"
    warmup: float = 0.1  # share of all steps
    drops: tuple[float, ...] = ()  # of "step": shares of all steps at which the rate falls to a tenth
    clip: float | None = 1.0  # largest gradient norm of an optimiser; null: no clipping
    average: float | None = None  # decay per step of averaged weights used for evaluation; null: none
    patience: int | None = None  # stop after so many epochs without a better validation score; null: never
    select: str | None = None  # validation metric that chooses the epoch, or "last"; null: the protocol's
    bucket: int = 1  # batches of similar length within windows of this many batches; 1: off
    eval_batch: int = 256
    save_every: int | None = None  # also save every so many steps, for long epochs
    augment: "AugmentConfig" = field(default_factory=lambda: AugmentConfig())
    groups: Mapping[str, GroupConfig] = field(default_factory=dict)
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check(self.epochs >= 0, f"epochs is {self.epochs}; it cannot be negative.")
        check(self.batch >= 1, f"batch is {self.batch}; it must be 1 or more.")
        check(self.accumulate >= 1, f"accumulate is {self.accumulate}; it must be 1 or more.")
        check(self.rate > 0, f"rate is {self.rate}; it must be positive.")
        check(self.decay >= 0, f"decay is {self.decay}; it cannot be negative.")
        known = self.patience is None or self.patience >= 1
        check(known, f"patience is {self.patience}; it must be 1 or more, or null.")
        check(self.eval_batch >= 1, f"eval_batch is {self.eval_batch}; it must be 1 or more.")
        known = self.save_every is None or self.save_every >= 1
        check(known, f"save_every is {self.save_every}; it must be 1 or more, or null.")
        check(all(0 < share < 1 for share in self.drops), f"drops is {self.drops}; each is a share of all steps.")
        check(
            bool(self.drops) <= (self.schedule == "step"), "drops is for train.schedule=step; leave it out otherwise."
        )
        check(0 <= self.warmup < 1, f"warmup is {self.warmup}; it is a share of all steps, from 0 up to 1.")
        check(self.clip is None or self.clip > 0, f"clip is {self.clip}; it must be positive, or null.")
        known = self.average is None or 0 < self.average < 1
        check(known, f"average is {self.average}; it lies between 0 and 1, or is null.")
        check(self.bucket >= 1, f"bucket is {self.bucket}; it must be 1 or more.")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes to training batches only, drawn anew each step; all off by default.

    ``noise``: deviation of Gaussian noise added to audio and vision features (they are standardised), drawn for each
    step, and once for columns that describe the whole clip; ``time_mask``:
    share of audio and vision steps hidden in one block; ``drop_modality``: chance that audio or vision of a row is
    hidden whole (never both).
    """

    noise: float = 0.0
    time_mask: float = 0.0
    drop_modality: float = 0.0

    def __post_init__(self) -> None:
        check(self.noise >= 0, f"noise is {self.noise}; it cannot be negative.")
        for name in ("time_mask", "drop_modality"):
            check(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it is a share from 0 up to 1.")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where training runs: handed to Lightning Fabric as they are."""

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: int | None = None  # CPU threads; null: as the machine has cores

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, f"threads is {self.threads}; it must be 1 or more, or null.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, complete. ``model`` is typed by the method, ``reader`` by the corpus."""

    corpus: str
    method: str
    seed: int = 1
    model: Any = None
    reader: Any = None
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
