"""Text to token ids, and text to the states of a frozen encoder, each distinct text once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from moodal.core.errors import MoodalError, check
from moodal.data.ragged import Ragged
from moodal.data.shards import Shards, new_shard
from moodal.layers.pretrained import EncoderFacts, TextEncoder, load_tokenizer, resolve

#: Tokens per batch of the frozen encoder, padding included, and texts per shard of the cache.
BATCH_TOKENS = 4096
SHARD_TEXTS = 16384
#: Where BERT's published vocabularies have their unknown token.
_BERT_UNKNOWN = 100
#: Changes when the way of encoding changes, so that older caches are not read.
_FORM = "1"

Report = Callable[[int, int], None]


def tokenise(texts: Sequence[str], encoder: str | EncoderFacts, max_tokens: int) -> Ragged:
    """Texts -> rows of (T_i,) int64 ids, special tokens kept, at most ``max_tokens`` each, no padding.

    An empty text gives an empty row, which is a missing stream. Raises MoodalError when ``max_tokens`` is more than
    the encoder's positions.
    """
    facts = resolve(encoder) if isinstance(encoder, str) else encoder
    check(
        max_tokens <= facts.positions,
        f"max_tokens is {max_tokens}, and text encoder {facts.name} has {facts.positions} positions; "
        "set data.text.max_tokens lower.",
    )
    rows: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(texts)
    filled = [place for place, text in enumerate(texts) if text.strip()]
    if filled:
        ids = _known_tokenizer(facts.path, facts.name, facts.tokenizer)(
            [texts[place] for place in filled],
            truncation=True,
            max_length=max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for place, row in zip(filled, ids, strict=True):
            rows[place] = np.asarray(row, dtype=np.int64)
    ragged = Ragged.from_rows(rows) if rows else Ragged(np.zeros(0, np.int64), np.zeros(1, np.int64))
    check(
        not len(ragged.values) or int(ragged.values.max()) < facts.vocabulary,
        f"the tokenizer of {facts.name} gives ids beyond its vocabulary of {facts.vocabulary}; "
        "its files do not belong together.",
    )
    return ragged


def encode_frozen(
    texts: Sequence[str],
    encoder: str,
    max_tokens: int,
    cache_dir: Path,
    progress: Report | None = None,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    device: str | torch.device = "cpu",
) -> Ragged:
    """Texts -> rows of (T_i, width) last hidden states of ``encoder``, without gradient or dropout.

    Each distinct text is encoded once and kept below ``cache_dir``; when all are there, neither the encoder nor its
    tokenizer is loaded. The rows are memory-mapped where the file holds them in this order. ``progress`` is called
    with (texts done, texts to do) while encoding.
    """
    facts = resolve(encoder)
    folder = cache_dir / "text_states" / _recipe_key(facts, str(max_tokens), dtype)

    def tokens(places: np.ndarray) -> Ragged:
        return tokenise([texts[place] for place in places], facts, max_tokens)

    into = _Into(folder, np.dtype(dtype), torch.device(device), progress)
    return _cached([_key(text.encode()) for text in texts], tokens, facts, into)


def encode_tokens(
    ids: Ragged, encoder: str, cache_dir: Path, progress: Report | None = None, *, device: str | torch.device = "cpu"
) -> Ragged:
    """Rows of token ids -> rows of (T_i, width) float32 states, as :func:`encode_frozen` gives them for texts.

    For texts that were changed after they were tokenised. Each distinct row is encoded once and kept below ``cache_dir``.
    """
    facts = resolve(encoder)
    folder = cache_dir / "token_states" / _recipe_key(facts, "tokens", "float32")
    keys = [_key(np.ascontiguousarray(ids[row], dtype=np.int64).tobytes()) for row in range(len(ids))]
    into = _Into(folder, np.dtype(np.float32), torch.device(device), progress)
    return _cached(keys, ids.select, facts, into)


def unknown_id(encoder: str, config: Mapping[str, Any] | None = None) -> int:
    """The id that stands for an unknown word in the vocabulary of ``encoder``.

    ``config``: the content of the encoder's config.json; where it is known to be a BERT and its tokenizer is not on this
    machine, 100, which all published BERT vocabularies have there. Raises MoodalError where there is no such id.
    """
    try:
        facts = resolve(encoder)
    except MoodalError:
        if (config or {}).get("model_type") != "bert":
            raise
        return _BERT_UNKNOWN
    found = _known_tokenizer(facts.path, facts.name, facts.tokenizer).unk_token_id
    check(found is not None, f"the vocabulary of {facts.name} has no unknown token, so no token can be dropped.")
    return int(found)


@dataclass(frozen=True)
class _Into:
    """Where states go, as what, and on which device they are made."""

    folder: Path
    dtype: np.dtype
    device: torch.device
    progress: Report | None


def _cached(keys: Sequence[bytes], tokens: Callable[[np.ndarray], Ragged], facts: EncoderFacts, into: _Into) -> Ragged:
    """The states of the rows called ``keys``; of those that are not in the cache, ``tokens`` gives the ids."""
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    distinct = list(dict.fromkeys(keys))
    shards = Shards(into.folder)
    absent = [distinct[place] for place in np.flatnonzero(shards.find(distinct).shard < 0)]
    if absent:
        _encode_all(absent, tokens(np.array([first[key] for key in absent])), facts, into)
        shards = Shards(into.folder)
    where = shards.find(keys)
    check(not np.any(where.shard < 0), f"the cache {into.folder} changed while it was read; run again.")
    if not len(keys):
        return Ragged(np.zeros((0, facts.width), into.dtype), np.zeros(1, np.int64))
    return shards.gather(where, facts.width, into.dtype)


def _encode_all(keys: Sequence[bytes], rows: Ragged, facts: EncoderFacts, into: _Into) -> None:
    """Encode distinct rows of ids into new shards. Rows stay in the order given; batches are by length."""
    model = TextEncoder(facts.name).to(into.device).eval() if len(rows.values) else None
    done = 0
    for start in range(0, len(keys), SHARD_TEXTS):
        part = np.arange(start, min(start + SHARD_TEXTS, len(keys)))
        lengths = rows.lengths[part]
        named = keys[start : start + len(part)]
        with new_shard(into.folder, named, lengths, width=facts.width, dtype=into.dtype) as shard:
            for batch in _batches(lengths):
                if model is not None and lengths[batch].any():
                    _encode_batch(model, rows, part[batch], shard, batch, into.device)
                done += len(batch)
                if into.progress is not None:
                    into.progress(done, len(keys))


def _batches(lengths: np.ndarray) -> list[np.ndarray]:
    """Positions sorted by length, cut so that rows x longest row stays below ``BATCH_TOKENS``."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        # Sizes that would fit if the batch ended at each later row: rows so far x that row's length.
        sizes = np.arange(1, len(order) - start + 1) * np.maximum(lengths[order[start:]], 1)
        size = max(1, int(np.searchsorted(sizes, BATCH_TOKENS, side="right")))
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.inference_mode()
def _encode_batch(
    model: TextEncoder, ids: Ragged, rows: np.ndarray, into: Ragged, places: np.ndarray, device: torch.device
) -> None:
    """Write the states of ``rows`` of ``ids`` into the rows ``places`` of ``into``."""
    stream = ids.pad(rows)
    states = model(stream.data.to(device), stream.mask.to(device)).float().cpu().numpy()
    real = stream.mask.numpy()
    target = into.offsets[places][:, None] + np.arange(real.shape[1])
    into.values[target[real]] = states[real]


@lru_cache(maxsize=4)
def _known_tokenizer(path: Path, name: str, _digest: str) -> Any:
    return load_tokenizer(path, name)


def _recipe_key(facts: EncoderFacts, form: str, dtype: str) -> str:
    parts = [_FORM, facts.revision, facts.tokenizer, form, dtype]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
