"""Pretrained encoders of sound and pictures in the Hugging Face layout: found, named by their weights, loaded and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moodal.core.errors import MoodalError, check
from moodal.core.files import read_json, sha256
from moodal.layers.pretrained import quiet, transformers_package

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
#: Tensors that a checkpoint may lack, for nothing here uses them.
_UNUSED = ("pooler", "masked_spec_embed", "mask_token")


@dataclass(frozen=True)
class HubFolder:
    """An encoder on this machine. ``revision`` names its weights: "commit:..." or "sha256:..."; ``config``: its config.json;
    ``processor``: its preprocessor_config.json, empty where it has none."""

    name: str
    path: Path
    revision: str
    config: dict[str, Any]
    processor: dict[str, Any]

    @property
    def kind(self) -> str:
        """The family of the model, such as "wav2vec2"."""
        return str(self.config.get("model_type", ""))


def find_encoder(name: str, revision: str) -> HubFolder:
    """An encoder by the path of a folder or its name on the hub, from the hub's cache where that has it.

    ``revision``: what its weights must be, empty for whatever they are. Raises MoodalError where it is not there or
    is another one.
    """
    path = Path(name)
    if path.is_dir():
        found = f"sha256:{_digest(name, path)}"
    else:
        wanted = revision.removeprefix("commit:") if revision.startswith("commit:") else None
        path = _download(name, wanted)
        found = f"commit:{path.name}"
    check(
        revision in ("", found),
        f"encoder {name} has the weights {found[:20]}…, and {revision[:20]}… were asked for; give the folder of those.",
    )
    config = read_json(path / "config.json")
    processor = read_json(path / "preprocessor_config.json") if (path / "preprocessor_config.json").is_file() else {}
    for file, content in (("config.json", config), ("preprocessor_config.json", processor)):
        check(isinstance(content, dict), f"encoder {name}: {file} is no JSON object; get its folder again.")
    return HubFolder(name, path, found, config, processor)


def load_encoder(folder: HubFolder, model_class: str) -> Any:
    """The model as the class of transformers called ``model_class``, ready to encode. Raises MoodalError."""
    transformers = transformers_package()
    try:
        with quiet(transformers):
            model, report = getattr(transformers, model_class).from_pretrained(
                str(folder.path), local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise MoodalError(
            f"encoder {folder.name} cannot be loaded from {folder.path} ({_line(error)}); get its files again."
        ) from error
    lacking = sorted(key for key in report["missing_keys"] if not any(part in key for part in _UNUSED))
    check(
        not lacking,
        f"the weights of encoder {folder.name} lack {len(lacking)} of its tensors, such as {lacking[:1]}; "
        "get its files again.",
    )
    return model.eval().float()


def load_processor(folder: HubFolder, processor_class: str, **options: Any) -> Any:
    """What prepares inputs for the model. Raises MoodalError where the folder's settings for it cannot be read."""
    transformers = transformers_package()
    try:
        with quiet(transformers):
            return getattr(transformers, processor_class).from_pretrained(
                str(folder.path), local_files_only=True, **options
            )
    except Exception as error:  # OSError, ValueError, KeyError, ImportError: by what is wrong with the file
        raise MoodalError(
            f"encoder {folder.name} has no usable preprocessor_config.json ({_line(error)}); get its files again."
        ) from error


def _download(name: str, commit: str | None) -> Path:
    transformers_package()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    advice = "give a local folder, or go online once"

    def snapshot(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=commit, allow_patterns=["*config.json", *patterns]))

    try:
        path = snapshot(f"{_WEIGHTS[0]}*")
        # The older form of the weights is as large again: only where the newer is absent.
        return path if any(path.glob(_WEIGHTS[0])) else snapshot(f"{_WEIGHTS[1]}*")
    except HFValidationError as error:
        raise MoodalError(f"encoder {name} is neither a folder nor a valid name on the hub; {advice}.") from error
    except OSError as error:  # not found, offline, no access: all are kinds of OSError
        raise MoodalError(
            f"encoder {name} is not on this machine and the hub did not give it ({type(error).__name__}); {advice}."
        ) from error


def _digest(name: str, path: Path) -> str:
    files = next((found for pattern in _WEIGHTS if (found := sorted(path.glob(pattern)))), [])
    check(bool(files), f"encoder {name} has no model.safetensors in its folder; get its files again.")
    sums = [sha256(file) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
