"""Runs without their corpus: opened from a run folder, from a folder of :func:`save_pretrained`, or from the hub.

Such a folder holds ``config.json`` (format, settings, what the data were, scores), ``model.safetensors`` (all weights of
the method), ``README.md`` (the model card) and, where the text encoder was fine-tuned and is part of the weights, its
vocabulary in ``tokenizer/``. A frozen text encoder is not part of it: it is found by name, and its checksum is compared.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import moodal
from moodal.build import build_method, stored_config
from moodal.core.config import resolve, to_plain
from moodal.core.errors import MissingExtra, MoodalError, check
from moodal.core.files import folder_aside, read_json, sha256, write_json, write_text
from moodal.core.method import Method
from moodal.core.settings import RunConfig
from moodal.core.spec import DataSpec, Identification, StreamSpec
from moodal.data import CORPORA
from moodal.data.store import task_from_json
from moodal.data.transforms import Transform
from moodal.layers.pretrained import EncoderFacts, TextEncoder, load_tokenizer
from moodal.layers.pretrained import resolve as resolve_encoder
from moodal.methods import METHODS
from moodal.model_card import model_card
from moodal.prepare import from_checkpoint
from moodal.train.runs import RunFolder

FORMAT = 1
CONFIG, WEIGHTS, CARD, VOCABULARY = "config.json", "model.safetensors", "README.md", "tokenizer"
#: The run that ships inside the package: its name, and its folder there.
SHIPPED, SHIPPED_FOLDER = "pretrained", "pretrained_run"
#: What ``config.json`` says of a fine-tuned text encoder.
WITH_WEIGHTS, LEFT_OUT = "with the weights", "left out"
_FORMAT_KEY = "moodal_format"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_AGAIN = "fetch or save it again"
#: Folders between a folder of runs and a run: corpus, method, settings, seed.
_DEPTH = 4
_TELLS = ("corpus", "title", "language", "task", "protocol", "sizes", "features", "text", "transforms")


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run that needs no corpus: ``data`` is its data.json, ``scores`` its scores.json (empty if it never finished).

    ``method`` has the selected weights. ``vocabulary``: of a fine-tuned text encoder, where it lies beside the weights.
    ``notes``: what every prediction of it must say.
    """

    source: str
    cfg: RunConfig
    data: Mapping[str, Any]
    scores: Mapping[str, Any]
    method: Method
    vocabulary: EncoderFacts | None = None
    notes: tuple[str, ...] = ()

    @property
    def encoder(self) -> TextEncoder | None:
        """The text encoder, where it is part of the method and its weights."""
        backbone = self.method.backbone()
        return backbone if isinstance(backbone, TextEncoder) else None


def open_saved(source: str | Path) -> SavedRun:
    """The run in a run folder, in a folder of :func:`save_pretrained` or in a hub repository "owner/name", or the one
    that ships with the package, "pretrained". Raises ``MoodalError`` where there is none, or not a whole one."""
    folder = _located(str(source))
    if (folder / "config.yaml").exists():
        return _from_run(folder, str(source))
    if (folder / CONFIG).exists():
        return _from_pretrained(folder, str(source))
    below = (
        path.parent for depth in range(1, _DEPTH + 1) for path in sorted(folder.glob("*/" * depth + "config.yaml"))
    )
    first = next(below, None)
    hint = "." if first is None else f"; did you mean {first}?"
    raise MoodalError(
        f"{source} is neither a run folder (with config.yaml) nor a saved model (with {CONFIG}); give one of them{hint}"
    )


def _located(source: str) -> Path:
    if source == SHIPPED:
        shipped = Path(str(importlib.resources.files("moodal"))) / SHIPPED_FOLDER
        check(
            shipped.is_dir(),
            "This installation carries no pretrained run; train one (moodal train) and name its folder as the run.",
        )
        return shipped
    if Path(source).is_dir():
        return Path(source)
    check(
        _HUB_NAME.fullmatch(source) is not None,
        f"{source} is no folder; give a run folder, a saved model, a hub repository owner/name, or '{SHIPPED}'.",
    )
    return _from_hub(source)


def _from_hub(name: str) -> Path:
    """The local snapshot of a hub repository; only the files of a saved model are fetched."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as fault:
        raise MissingExtra("huggingface_hub", "text") from fault
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD, f"{VOCABULARY}/*"]))
    except (OSError, HFValidationError) as fault:  # not found, offline, no access: all are kinds of OSError
        raise MoodalError(
            f"There is no folder {name}, and the hub did not give a repository of that name ({type(fault).__name__}); "
            "check the name, or go online once."
        ) from fault


def _from_run(folder: Path, source: str) -> SavedRun:
    home = RunFolder(folder)
    cfg, data = stored_config(folder), home.data()
    method = build_method(cfg, spec_of(data, source))
    last = method.stages()[-1].name
    name = f"best-{last}.pt" if home.has(f"best-{last}.pt") else "last.pt"
    home.restore(name, home.load(name), method)
    notes = () if home.finished else ("The run was not trained to its end; what it had last saved is used.",)
    scores = home.scores() if home.finished else {}
    return SavedRun(source=source, cfg=cfg, data=data, scores=scores, method=method.eval(), notes=notes)


def _from_pretrained(folder: Path, source: str) -> SavedRun:
    stored = read_json(folder / CONFIG)
    check(
        isinstance(stored, dict) and _FORMAT_KEY in stored,
        f"{folder / CONFIG} was not written by moodal; give a run folder or a folder of save_pretrained.",
    )
    version = stored[_FORMAT_KEY]
    check(
        version == FORMAT, f"{source} has format {version}, and this version of moodal reads {FORMAT}; save it again."
    )
    absent = {"settings", "data", "scores", "weights", "encoder"} - set(stored)
    check(not absent, f"{folder / CONFIG} lacks {', '.join(sorted(absent))}; {_AGAIN}.")
    cfg, data = _settings(stored["settings"], folder / CONFIG), stored["data"]
    method = build_method(cfg, spec_of(data, source))
    encoder = stored["encoder"] or {}
    weights = _weights(folder / WEIGHTS, stored["weights"])
    notes: tuple[str, ...] = ()
    if encoder.get("is") == LEFT_OUT:
        weights, notes = _with_public_encoder(weights, method, data["text"])
    try:
        method.load_state_dict(weights)
    except RuntimeError as fault:
        reason = str(fault).splitlines()[-1].strip()
        raise MoodalError(f"{folder / WEIGHTS} does not fit its {CONFIG} ({reason}); {_AGAIN}.") from fault
    vocabulary = None
    if encoder.get("is") == WITH_WEIGHTS:
        vocabulary = _vocabulary(folder / VOCABULARY, data["text"], int(encoder["positions"]))
    return SavedRun(
        source=source, cfg=cfg, data=data, scores=stored["scores"], method=method.eval(), vocabulary=vocabulary, notes=notes
    )  # fmt: skip


def _settings(values: Mapping[str, Any], place: Path) -> RunConfig:
    types = {"model": METHODS[str(values.get("method"))].Config, "reader": CORPORA[str(values.get("corpus"))].Config}
    return resolve(RunConfig, [(str(place), values)], types).config


def _weights(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file whose checksum is ``known``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check(path.is_file(), f"{path} is missing; {_AGAIN}.")
    check(
        sha256(path) == known.get("sha256"),
        f"{path} is not the file that {CONFIG} tells of (its SHA-256 differs): it is incomplete or was changed; {_AGAIN}.",
    )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as fault:
        raise MoodalError(f"{path} is no readable safetensors file ({fault}); {_AGAIN}.") from fault


def _with_public_encoder(
    weights: Mapping[str, Any], method: Method, text: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``weights`` with those of the text encoder as it was before training, and what to say about that."""
    public = TextEncoder(str(text["encoder"])).state_dict()
    prefix = _prefix(method)
    note = (
        f"The fine-tuned text encoder was left out when this model was saved; {text['encoder']} stands in as published."
    )
    return {**weights, **{f"{prefix}{name}": tensor for name, tensor in public.items()}}, (note,)


def _prefix(method: Method) -> str:
    """What the names of the text encoder's weights begin with."""
    backbone = method.backbone()
    return next(f"{name}." for name, module in method.named_modules() if module is backbone)


def _vocabulary(folder: Path, text: Mapping[str, Any], positions: int) -> EncoderFacts:
    """What is known of a fine-tuned encoder whose tokenizer lies in ``folder``."""
    check(folder.is_dir(), f"{folder} is missing; {_AGAIN}.")
    return EncoderFacts(
        name=str(text["encoder"]), path=folder, revision=WITH_WEIGHTS, tokenizer=str(text["tokenizer"]),
        width=int(text["width"]), vocabulary=int(text["config"]["vocab_size"]), positions=positions, config=text["config"],
    )  # fmt: skip


def spec_of(data: Mapping[str, Any], source: str) -> DataSpec:
    """What the method of a run was built for, from its data.json. Raises ``MoodalError`` where that does not say."""
    absent = [name for name in _TELLS if name not in data]
    check(not absent, f"{source} does not say what its data were (no {', '.join(absent)}); {_AGAIN}.")
    task = task_from_json(data["task"])
    check(
        not isinstance(task, Identification),
        f"{source} tells people apart by pictures, which is no prediction of a clip; score it with moodal evaluate.",
    )
    check(
        "reads" in data,
        f"{source} was made by an earlier version of moodal or imported, and does not say what it reads; train it again.",
    )
    text, reads = data["text"], data["reads"]
    tokens = text.get("mode") in ("finetune", "tokens")

    def written() -> StreamSpec:
        if tokens:
            return StreamSpec("tokens", int(text["width"]), str(text["encoder"]))
        return StreamSpec("features", int(text["width"]))

    streams: dict[Any, StreamSpec] = {}
    for name in reads["streams"]:
        if name == "text":
            streams[name] = StreamSpec("features", int(text["features"]["width"])) if "features" in text else written()
        else:
            state = data["transforms"].get(name)
            width = data["features"][name]["width"] if state is None else Transform.from_state(state).out
            streams[name] = StreamSpec("features", int(width))
    spec = DataSpec(
        streams=streams, task=task, explanations={role: written() for role in reads["explanations"]},
        size=data["sizes"],
    )  # fmt: skip
    return from_checkpoint(spec, data)


def save_pretrained(run: SavedRun, folder: Path, *, encoder: bool = True) -> Path:
    """Write ``run`` to ``folder``, which must not exist or be empty, and return it.

    ``encoder``: whether the weights of a fine-tuned text encoder are part of it; without them the published encoder
    stands in, and the predictions are others. Raises ``MoodalError`` where the folder is in use or cannot be written.
    """
    check(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} is in use already; choose another folder, a saved model is never overwritten.",
    )
    with folder_aside(folder) as temporary:
        _write_weights(run, temporary / WEIGHTS, encoder=encoder)
        told: dict[str, Any] | None = None
        if run.encoder is not None:
            told = {"is": WITH_WEIGHTS if encoder else LEFT_OUT}
            if encoder:
                told["positions"] = _write_vocabulary(run, temporary / VOCABULARY)
        settings = to_plain(replace(run.cfg, data=replace(run.cfg.data, root=None)))
        stored = {
            _FORMAT_KEY: FORMAT, "made_by": f"moodal {moodal.__version__}", "settings": settings, "data": run.data,
            "scores": run.scores, "encoder": told, "weights": {"sha256": sha256(temporary / WEIGHTS)},
        }  # fmt: skip
        write_json(temporary / CONFIG, stored)
        write_text(
            temporary / CARD, model_card(run.cfg, run.data, run.scores, encoder=None if told is None else told["is"])
        )
    return folder


def _write_weights(run: SavedRun, path: Path, *, encoder: bool) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = run.method.state_dict()
    if run.encoder is not None and not encoder:
        prefix = _prefix(run.method)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    try:  # copies, for safetensors refuses tensors that share memory
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as fault:
        raise OSError(str(fault)) from fault


def _write_vocabulary(run: SavedRun, folder: Path) -> int:
    """Copy the tokenizer of a fine-tuned encoder; returns how many positions the encoder has."""
    facts = run.vocabulary or resolve_encoder(run.cfg.data.text.encoder)
    load_tokenizer(facts.path, facts.name).save_pretrained(str(folder))
    return facts.positions
