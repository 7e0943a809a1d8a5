"""Text to token ids, and text to the states of a frozen encoder, each distinct text once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from moodal.core.errors import check
from moodal.data.ragged import Ragged
from moodal.data.shards import Shards, new_shard
from moodal.layers.pretrained import EncoderFacts, TextEncoder, load_tokenizer, resolve

#: Tokens per batch of the frozen encoder, padding included, and texts per shard of the cache.
BATCH_TOKENS = 4096
SHARD_TEXTS = 16384
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
    folder = cache_dir / "text_states" / _recipe_key(facts, max_tokens, dtype)
    distinct = list(dict.fromkeys(texts))
    keys = [_key(text) for text in distinct]
    shards = Shards(folder)
    absent = np.flatnonzero(shards.find(keys).shard < 0)
    if len(absent):
        wanted = [distinct[place] for place in absent]
        _encode_all(wanted, facts, max_tokens, folder, progress, np.dtype(dtype), torch.device(device))
        shards = Shards(folder)
    place = {key: number for number, key in enumerate(keys)}
    where = shards.find([keys[place[_key(text)]] for text in texts])
    check(not np.any(where.shard < 0), f"the cache {folder} changed while it was read; run again.")
    if not len(texts):
        return Ragged(np.zeros((0, facts.width), dtype), np.zeros(1, np.int64))
    return shards.gather(where, facts.width, np.dtype(dtype))


def _encode_all(
    texts: list[str],
    facts: EncoderFacts,
    max_tokens: int,
    folder: Path,
    progress: Report | None,
    dtype: np.dtype,
    device: torch.device,
) -> None:
    """Encode distinct texts into new shards. Rows stay in the order given; batches are by length."""
    rows = tokenise(texts, facts, max_tokens)
    model = TextEncoder(facts.name).to(device).eval() if len(rows.values) else None
    done = 0
    for start in range(0, len(texts), SHARD_TEXTS):
        part = np.arange(start, min(start + SHARD_TEXTS, len(texts)))
        lengths = rows.lengths[part]
        keys = [_key(texts[row]) for row in part]
        with new_shard(folder, keys, lengths, width=facts.width, dtype=dtype) as shard:
            for batch in _batches(lengths):
                if model is not None and lengths[batch].any():
                    _encode_batch(model, rows, part[batch], shard, batch, device)
                done += len(batch)
                if progress is not None:
                    progress(done, len(texts))


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


def _recipe_key(facts: EncoderFacts, max_tokens: int, dtype: str) -> str:
    parts = [_FORM, facts.revision, facts.tokenizer, str(max_tokens), dtype]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
