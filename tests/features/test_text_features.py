"""Text to ids and to frozen states: special tokens, truncation, missing texts, and the cache on disk."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import tiny_encoder
import torch

from moodal.core.errors import MoodalError
from moodal.data.shards import Shards, new_shard
from moodal.features import text as features
from moodal.features.text import encode_frozen, tokenise
from moodal.layers.pretrained import TextEncoder

TEXTS = [
    "the film was good .",
    "",
    "i liked it",
    "very bad",
    "the film was good .",
    "  ",
    "a story and a story and a story",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("transformers")
    return str(tiny_encoder.write(tmp_path_factory.mktemp("encoder") / "tiny"))


@pytest.fixture
def no_encoder(monkeypatch):
    """From here on, building an encoder or a tokenizer is a failure."""

    def refuse(*_, **__):
        raise AssertionError("the encoder was built")

    def forbid():
        monkeypatch.setattr(features, "TextEncoder", refuse)
        monkeypatch.setattr(features, "tokenise", refuse)

    return forbid


def test_ids_keep_special_tokens_and_are_cut(encoder):
    ids = tokenise(TEXTS, encoder, 6)
    vocabulary = {word: place for place, word in enumerate(tiny_encoder.SPECIAL + tiny_encoder.WORDS)}
    assert ids[2].tolist() == [vocabulary[w] for w in ("[CLS]", "i", "liked", "it", "[SEP]")]
    assert ids[0].tolist()[-1] == vocabulary["[SEP]"]
    assert len(ids[6]) == 6
    assert ids.values.dtype == np.int64


def test_empty_texts_are_missing(encoder):
    assert tokenise(TEXTS, encoder, 6).lengths[[1, 5]].tolist() == [0, 0]
    assert len(tokenise([], encoder, 6)) == 0
    assert tokenise(["", ""], encoder, 6).lengths.tolist() == [0, 0]


def test_more_tokens_than_positions_is_a_sentence(encoder):
    with pytest.raises(MoodalError, match=r"max_tokens is 41, and text encoder .* has 40 positions"):
        tokenise(TEXTS, encoder, 41)


def test_states_equal_the_encoder_on_each_text_alone(encoder, tmp_path):
    states = encode_frozen(TEXTS, encoder, 20, tmp_path)
    ids = tokenise(TEXTS, encoder, 20)
    assert states.lengths.tolist() == ids.lengths.tolist()
    assert states.values.dtype == np.float32
    model = TextEncoder(encoder).eval()
    for row in (0, 2, 3, 4, 6):
        one = torch.from_numpy(ids[row])[None]
        alone = model(one, torch.ones_like(one, dtype=torch.bool))[0].detach().numpy()
        np.testing.assert_allclose(states[row], alone, atol=1e-5)


def test_second_call_builds_no_encoder_whatever_the_order(encoder, tmp_path, no_encoder):
    first = encode_frozen(TEXTS, encoder, 20, tmp_path)
    no_encoder()
    again = encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert np.array_equal(first.values, again.values)
    backwards = encode_frozen(TEXTS[::-1], encoder, 20, tmp_path)
    assert all(np.array_equal(backwards[len(TEXTS) - 1 - row], first[row]) for row in range(len(TEXTS)))


def test_distinct_texts_in_order_are_read_from_the_file_itself(encoder, tmp_path):
    texts = list(dict.fromkeys(TEXTS))
    encode_frozen(texts, encoder, 20, tmp_path)
    values = encode_frozen(texts, encoder, 20, tmp_path).values
    while values.base is not None and not isinstance(values, np.memmap):
        values = values.base
    assert isinstance(values, np.memmap)


def test_only_new_texts_are_encoded(encoder, tmp_path, monkeypatch):
    encode_frozen(TEXTS[:3], encoder, 20, tmp_path)
    asked = []
    whole = features.tokenise
    monkeypatch.setattr(features, "tokenise", lambda texts, *rest: asked.extend(texts) or whole(texts, *rest))
    states = encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert asked == ["very bad", "  ", TEXTS[6]]
    assert states.lengths.tolist() == tokenise(TEXTS, encoder, 20).lengths.tolist()


def test_other_length_or_encoder_is_another_cache(encoder, tmp_path):
    encode_frozen(TEXTS, encoder, 20, tmp_path / "cache")
    assert encode_frozen(TEXTS, encoder, 4, tmp_path / "cache").lengths.max() == 4
    other = tiny_encoder.write(tmp_path / "other", seed=1)
    theirs = encode_frozen(TEXTS, str(other), 20, tmp_path / "cache")
    assert not np.allclose(theirs.values, encode_frozen(TEXTS, encoder, 20, tmp_path / "cache").values)


def test_damaged_cache_is_remade_with_a_warning(encoder, tmp_path, caplog):
    first = encode_frozen(TEXTS, encoder, 20, tmp_path).values.copy()
    values = next(tmp_path.rglob("values.npy"))
    content = bytearray(values.read_bytes())
    content[-3] ^= 0xFF
    values.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        again = encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(again.values, first)
    caplog.clear()
    encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert caplog.text == ""


def test_truncated_cache_is_remade(encoder, tmp_path, caplog):
    first = encode_frozen(TEXTS, encoder, 20, tmp_path).values.copy()
    values = next(tmp_path.rglob("values.npy"))
    values.write_bytes(values.read_bytes()[:200])
    np.testing.assert_array_equal(encode_frozen(TEXTS, encoder, 20, tmp_path).values, first)
    assert "is damaged" in caplog.text


def test_interrupted_encoding_leaves_nothing(encoder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "_encode_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert list(tmp_path.rglob("*.npy")) == []
    assert len(encode_frozen(TEXTS, encoder, 20, tmp_path)) == len(TEXTS)


def test_full_disk_is_a_sentence(encoder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(MoodalError, match="disk is full"):
        encode_frozen(TEXTS, encoder, 20, tmp_path)
    assert list(tmp_path.rglob("*.npy")) == []


def test_progress_ends_at_the_number_of_distinct_texts(encoder, tmp_path):
    seen = []
    encode_frozen(TEXTS, encoder, 20, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_half_precision_halves_the_file(encoder, tmp_path):
    whole = encode_frozen(TEXTS, encoder, 20, tmp_path)
    half = encode_frozen(TEXTS, encoder, 20, tmp_path, dtype="float16")
    assert half.values.dtype == np.float16
    np.testing.assert_allclose(half.values, whole.values, atol=5e-3)


def test_batches_hold_every_text_once_within_the_token_limit():
    lengths = np.random.default_rng(0).integers(0, 60, 5000)
    batches = features._batches(lengths)
    assert sorted(np.concatenate(batches).tolist()) == list(range(5000))
    assert all(len(batch) * lengths[batch].max() <= features.BATCH_TOKENS for batch in batches)
    assert len(batches) < 60  # 150,000 tokens: batches are full


def test_shards_of_several_writers_are_joined(tmp_path):
    def write(number):
        keys = [f"{number}-{row}".encode().ljust(8) for row in range(4)]
        with new_shard(tmp_path, keys, np.arange(4), width=2, dtype=np.dtype(np.float32)) as shard:
            shard.values[:] = number

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shards = Shards(tmp_path)
    wanted = [b"2-3".ljust(8), b"0-1".ljust(8), b"3-0".ljust(8), b"2-2".ljust(8)]
    found = shards.gather(shards.find(wanted), 2, np.dtype(np.float32))
    assert found.lengths.tolist() == [3, 1, 0, 2]
    assert [float(found[row].mean()) for row in (0, 1, 3)] == [2.0, 0.0, 2.0]
    assert shards.find([b"absent".ljust(8)]).shard.tolist() == [-1]


@pytest.mark.real
def test_minilm_has_the_known_states(tmp_path):
    pytest.importorskip("transformers")
    rows = encode_frozen(
        ["a nice film", "a film of the better sort", "the train leaves at noon"], "minilm", 50, tmp_path
    )
    assert rows.width == 384
    means = np.stack([rows[row].mean(axis=0) for row in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2
