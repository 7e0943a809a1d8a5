"""Degradations: nested, repeatable, as published; and all that is derived from a clip knows only what is left of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tiny_encoder
import torch
import toys

from moodal.build import run_path
from moodal.core.errors import DataError, MoodalError
from moodal.core.settings import AugmentConfig, DataConfig, Kind, MissingData, StreamData, TextData
from moodal.core.spec import Needs
from moodal.data.degrade import KINDS, PUBLISHED_SEEDS, Rows, keep_masks, rate_to_snr, snr_to_rate, uniforms
from moodal.data.ragged import Ragged
from moodal.missing import Degrader, with_missing
from moodal.prepare import prepare, read_corpus
from moodal.train.batches import augmented

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "emt_dlfr" / "missing.safetensors"
LENGTHS = (7, 1, 0, 12, 30, 2)
DROPPING = ("frames", "block", "modality")


def vectors(width: int = 3, seed: int = 0) -> Ragged:
    draw = np.random.default_rng(seed)
    return Ragged.from_rows([draw.standard_normal((length, width)).astype(np.float32) + 5 for length in LENGTHS])


def tokens() -> Ragged:
    return Ragged.from_rows([np.arange(1000, 1000 + length) for length in LENGTHS])


def rows(stream: Ragged, **changes) -> Rows:
    width = stream.width
    known = {
        "modality": "audio", "split": "test", "ids": tuple(f"clip {n}" for n in range(len(stream))), "steps": 30,
        "blank": np.zeros(width, np.float32) if stream.values.ndim == 2 else 100,
        "mean": np.full(width, 5.0), "deviation": np.arange(1.0, 1.0 + width),
    }  # fmt: skip
    return Rows(**{**known, **changes})


def test_the_table_has_the_kinds_of_the_settings():
    assert tuple(KINDS) == get_args(Kind)
    assert all(name == kind.name for name, kind in KINDS.items())


# The published masks


def test_masks_are_drawn_as_by_the_global_generator_after_seeding():
    lengths = np.array([6, 2, 4, 0])
    real = np.arange(6) < lengths[:, None]
    kept = keep_masks(dict.fromkeys(PUBLISHED_SEEDS, real), 0.4)
    state = np.random.get_state()
    try:
        for name, seed in {"text": 111, "audio": 1111, "vision": 11111}.items():
            np.random.seed(seed)
            wanted = (np.random.uniform(size=(4, 6)) > 0.4) & real
            if name == "text":
                wanted[[0, 0, 1, 1, 2, 2], [0, 5, 0, 1, 0, 3]] = True
            assert np.array_equal(kept[name], wanted)
    finally:
        np.random.set_state(state)


@pytest.mark.skipif(not PARITY.is_file(), reason="the recorded cases (shared/parity) are not beside the repository")
def test_masks_equal_those_of_the_official_code():
    from safetensors.numpy import load_file

    case = load_file(PARITY)
    ids, valid = case["input.text_ids"], case["input.text_mask"].astype(bool)
    real = {"text": valid}
    for name in ("audio", "vision"):
        real[name] = np.arange(case[f"input.{name}"].shape[1]) < case[f"input.{name}_lengths"][:, None]
    for rate in (0.0, 0.3, 0.7, 1.0):
        kept = keep_masks(real, rate)
        for name, mask in kept.items():
            np.testing.assert_array_equal(mask, case[f"output.rate{rate}.{name}_kept"])
        # the same through the degradation itself, which knows rows and not padding
        text = Ragged.from_rows([row[mask] for row, mask in zip(ids, valid)])
        left = KINDS["frames"](text, rows(text, modality="text", steps=ids.shape[1]), rate=rate).stream
        wanted = case[f"output.rate{rate}.text_ids"]
        assert all(np.array_equal(left[n], wanted[n][valid[n]]) for n in range(len(left)))
        audio = Ragged.from_rows([row[mask] for row, mask in zip(case["input.audio"], real["audio"])])
        blank = np.zeros(audio.width, np.float32)
        left = KINDS["frames"](audio, rows(audio, steps=real["audio"].shape[1], blank=blank), rate=rate).stream
        wanted = case[f"output.rate{rate}.audio"]
        assert all(np.array_equal(left[n], wanted[n][real["audio"][n]]) for n in range(len(left)))


def test_published_masks_repeat_between_splits_and_other_seeds_do_not():
    stream, kind = vectors(), KINDS["frames"]
    train, test = (rows(stream, split=split) for split in ("train", "test"))
    same = [kind(stream, place, rate=0.5).observed for place in (train, test)]
    assert np.array_equal(*same)
    other = [kind(stream, place, rate=0.5, seed=7).observed for place in (train, test)]
    assert not np.array_equal(*other) and not np.array_equal(other[0], same[0])


def test_the_share_that_is_dropped_is_the_rate():
    stream = Ragged.from_rows([np.ones((200, 1), np.float32)] * 100)
    for kind in ("frames", "block", "modality"):
        many = rows(stream, steps=200, blank=np.zeros(1), ids=tuple(f"row {n}" for n in range(100)))
        left = KINDS[kind](stream, many, rate=0.3).stream
        lost = 1 - left.values.sum() / 20_000
        trials = 100 if kind == "modality" else 20_000
        assert lost == pytest.approx(0.3, abs=3 * np.sqrt(0.21 / trials)), kind


# What all kinds promise


@pytest.mark.parametrize("name", KINDS)
def test_rate_0_is_the_very_stream(name):
    stream = vectors()
    damaged = KINDS[name](stream, rows(stream), rate=0)
    assert damaged.stream is stream and damaged.observed.all()


@pytest.mark.parametrize("name", KINDS)
def test_equal_seeds_give_equal_streams_and_other_seeds_others(name):
    stream = vectors()
    first, again, other = (KINDS[name](stream, rows(stream), rate=0.5, seed=seed).stream for seed in (3, 3, 4))
    assert np.array_equal(first.values, again.values) and np.array_equal(first.offsets, again.offsets)
    equal = first.values.shape == other.values.shape and np.array_equal(first.values, other.values)
    assert equal != KINDS[name].drawn


@pytest.mark.parametrize("name", [name for name in KINDS if name != "frames"])
def test_a_clip_fares_alike_in_any_company(name):
    stream, chosen = vectors(), np.array([4, 0, 3])
    whole = KINDS[name](stream, rows(stream), rate=0.4, seed=2).stream
    part = KINDS[name](stream.select(chosen), rows(stream, ids=tuple(f"clip {n}" for n in chosen)), rate=0.4, seed=2)
    for place, row in enumerate(chosen):
        np.testing.assert_allclose(part.stream[place], whole[row], rtol=1e-6)


@pytest.mark.parametrize("make", [vectors, tokens], ids=["vectors", "tokens"])
@pytest.mark.parametrize("name", ["frames", "block"])
def test_what_a_smaller_rate_drops_a_larger_one_drops_too(name, make):
    stream, before = make(), None
    for rate in np.linspace(0, 1, 31):
        kept = KINDS[name](stream, rows(stream), rate=float(rate)).observed
        assert before is None or not (kept & ~before).any()
        before = kept


def test_a_modality_missing_at_a_rate_is_missing_at_larger_ones():
    stream, before = vectors(), np.ones(len(LENGTHS), bool)
    for rate in np.linspace(0, 1, 31):
        there = KINDS["modality"](stream, rows(stream), rate=float(rate)).stream.lengths > 0
        assert not (there & ~before).any()
        before = there
    assert not before.any()


@pytest.mark.parametrize("name", ["frames", "block"])
def test_rate_1_leaves_the_first_and_last_token_alone(name):
    left = KINDS[name](tokens(), rows(tokens(), modality="text"), rate=1).stream
    assert left.lengths.tolist() == list(LENGTHS)
    assert (
        left[3].tolist() == [1000, *[100] * 10, 1011]
        and left[1].tolist() == [1000]
        and left[5].tolist() == [1000, 1001]
    )
    assert not KINDS[name](vectors(), rows(vectors()), rate=1).stream.values.any()


def test_what_is_dropped_is_blank_and_the_rest_is_as_it_was():
    stream, blank = vectors(), np.array([1.0, -2.0, 3.0], np.float32)
    left, observed = KINDS["frames"](stream, rows(stream, blank=blank), rate=0.5)
    assert 0 < observed.sum() < len(observed)
    assert np.array_equal(left.values[observed], stream.values[observed])
    assert (left.values[~observed] == blank).all()
    assert left.offsets is stream.offsets


def test_a_block_is_one_run_of_the_length_asked_for():
    stream = vectors()
    for rate in (0.25, 0.5, 0.8):
        observed = Ragged(KINDS["block"](stream, rows(stream), rate=rate).observed, stream.offsets)
        for row, length in enumerate(LENGTHS):
            lost = np.flatnonzero(~observed[row])
            assert len(lost) == int(rate * length + 0.5)
            assert not len(lost) or lost[-1] - lost[0] == len(lost) - 1


def test_blocks_begin_anywhere():
    stream = Ragged.from_rows([np.ones((10, 1), np.float32)] * 400)
    many = rows(stream, blank=np.zeros(1), ids=tuple(f"row {n}" for n in range(400)))
    left = KINDS["block"](stream, many, rate=0.5).stream.values.reshape(400, 10)
    starts = np.bincount((left == 0).argmax(axis=1), minlength=6)
    assert len(starts) == 6 and starts.min() > 40  # of 66.7 expected at each of the six places


@pytest.mark.parametrize("decibels", [30.0, 10.0, 0.0, -7.5])
def test_noise_has_the_ratio_asked_for_in_every_row(decibels):
    stream = vectors()
    place = rows(stream)
    left = KINDS["noise"](stream, place, rate=snr_to_rate(decibels)).stream
    for row in range(len(stream)):
        if not len(stream[row]):
            continue
        signal = (stream[row] - place.mean) / place.deviation
        noise = (left[row] - stream[row]) / place.deviation
        found = 10 * np.log10(np.square(signal).mean() / np.square(noise).mean())
        assert found == pytest.approx(decibels, abs=0.01)


def test_noise_is_normal_and_independent():
    stream = Ragged.from_rows([np.full((500, 4), 6.0)] * 20)
    place = rows(stream, ids=tuple(f"row {n}" for n in range(20)), mean=np.full(4, 5.0), deviation=np.ones(4))
    noise = (KINDS["noise"](stream, place, rate=0.5).stream.values - 6.0).reshape(20, 2000)
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(noise) < 1) == pytest.approx(0.6827, abs=0.01)
    apart = np.corrcoef(noise) - np.eye(20)
    assert np.abs(apart).max() < 0.12  # 2000 numbers: a deviation of 0.022
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02


def test_decibels_and_rates_are_one_scale():
    assert snr_to_rate(0.0) == 0.5 and snr_to_rate(10.0) == pytest.approx(1 / 11)
    assert rate_to_snr(snr_to_rate(-3.0)) == pytest.approx(-3.0) and rate_to_snr(0) == float("inf")


def test_long_streams_are_given_noise_in_parts_as_in_one(monkeypatch):
    from moodal.data import degrade

    stream = vectors()
    whole = KINDS["noise"](stream, rows(stream), rate=0.3).stream.values
    monkeypatch.setattr(degrade, "_STEPS", 10)
    np.testing.assert_array_equal(KINDS["noise"](stream, rows(stream), rate=0.3).stream.values, whole)


def test_uniform_numbers_are_a_function_of_key_and_counter():
    # SplitMix64 from state 1234567: its first two outputs, over 2^64
    first, second = 6457827717110365317, 3203168211198807973
    found = uniforms(np.array([1234567], np.uint64), np.array([[0, 1]]))
    np.testing.assert_allclose(found[0], [first / 2**64, second / 2**64], rtol=1e-12)


def test_blur_by_hand():
    stream = Ragged.from_rows(
        [np.array([[0.0], [3.0], [6.0], [0.0], [9.0]], np.float32), np.array([[4.0]], np.float32)]
    )
    left, observed = KINDS["blur"](stream, rows(stream, ids=("a", "b")), rate=0.25)  # one step to either side
    np.testing.assert_allclose(left[0][:, 0], [1.5, 3.0, 3.0, 5.0, 4.5], rtol=1e-6)
    assert left[1].tolist() == [[4.0]] and observed.tolist() == [False] * 5 + [True]
    whole = KINDS["blur"](stream, rows(stream, ids=("a", "b")), rate=1).stream
    np.testing.assert_allclose(whole[0][:, 0], [3.6] * 5, rtol=1e-6)


def test_freeze_by_hand():
    stream = Ragged.from_rows([np.arange(5.0, dtype=np.float32)[:, None], np.array([[4.0]], np.float32)])
    place = rows(stream, ids=("a", "b"))
    left, observed = KINDS["freeze"](stream, place, rate=0.5)
    assert left[0][:, 0].tolist() == [0, 1, 2, 2, 2] and left[1].tolist() == [[4.0]]
    assert observed.tolist() == [True, True, True, False, False, True]
    assert KINDS["freeze"](stream, place, rate=1).stream[0][:, 0].tolist() == [0] * 5


# In a prepared corpus


def missing(kind: str = "frames", rate: float = 0.5, **settings) -> MissingData:
    return MissingData(kind=kind, rate=rate, **settings)


def configured(**data):
    cfg = toys.toy_config()
    return replace(cfg, data=replace(cfg.data, **data))


def degrader(cfg, needs: Needs | None = None, *, cache: Path | None = None) -> Degrader:
    raw, needs = read_corpus(cfg), needs or Needs()
    return Degrader(raw, cfg, needs, prepare(raw, cfg, needs, cache=cache), cache=cache)


@pytest.fixture(scope="module")
def made() -> Degrader:
    return degrader(toys.toy_config())


def everything(split):
    return split.rows(torch.arange(len(split)))


def test_rate_0_is_the_very_split(made):
    assert made("test", missing(rate=0)) is made.data.splits["test"]


def test_dropped_steps_are_zero_vectors_for_the_method_and_the_rest_is_as_it_was(made):
    clean, left = (everything(split) for split in (made.data.splits["test"], made("test", missing())))
    assert left.ids == clean.ids and torch.equal(left.target.value, clean.target.value)
    for name, stream in left.streams.items():
        kept = stream.observed & stream.mask
        assert torch.equal(stream.mask, clean.streams[name].mask)
        assert torch.equal(stream.data[kept], clean.streams[name].data[kept])
        assert not stream.data[~kept].any()
        assert 0.3 < float(kept.sum() / stream.mask.sum()) < 0.7


def test_a_missing_modality_is_masked(made):
    left = everything(made("test", missing("modality", 1, modalities=("vision",))))
    assert not left.streams["vision"].mask.any() and left.streams["audio"].mask.any(dim=1).all()
    some = everything(made("test", missing("modality", 0.5)))
    gone = torch.stack([~stream.mask.any(dim=1) for stream in some.streams.values()])
    assert 0 < int(gone.sum()) < gone.numel() and not torch.equal(gone[1], gone[2])  # each modality by its own draw


@pytest.mark.parametrize("rate", [0.4, 1.0])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_a_split_that_can_be_read(made, name, rate):
    if name == "noise" and rate == 1:
        pytest.skip("noise alone has no signal")
    for batch in made("valid", missing(name, rate)).batches(5):
        assert all(bool(torch.isfinite(stream.data.float()).all()) for stream in batch.streams.values())


def test_only_the_named_streams_are_touched(made):
    left = everything(made("test", missing(modalities=("audio",))))
    clean = everything(made.data.splits["test"])
    assert all(torch.equal(left.streams[name].data, clean.streams[name].data) for name in ("text", "vision"))
    assert not torch.equal(left.streams["audio"].data, clean.streams["audio"].data)
    assert left.words == clean.words and everything(made("test", missing())).words is None


@pytest.mark.parametrize(
    "setting", [StreamData(root=True), StreamData(pool=3, statistics=True), StreamData(normalise="none")]
)
def test_dropped_frames_are_zero_whatever_is_derived_from_them(setting):
    maker = degrader(configured(audio=setting))
    left = everything(maker("test", missing(rate=1))).streams["audio"]
    width = left.data.shape[2] - left.whole
    assert float(left.data[..., :width].abs().max()) < 1e-5
    assert not (left.observed & left.mask).any()


def test_statistics_of_a_clip_know_only_what_is_left_of_it():
    maker = degrader(configured(audio=StreamData(statistics=True)))
    split = maker("test", missing(rate=1, modalities=("audio",)))
    lengths = split.streams["audio"].lengths
    alike = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    pairs = [found[:2] for found in alike if len(found) > 1]
    numbers = split.statistics["audio"].numpy()
    tone = numbers[:, : 6 * split.streams["audio"].width + 1]  # those of the words' timing are the text's
    assert pairs and all(np.allclose(tone[one], tone[other], atol=1e-5) for one, other in pairs)
    clean = maker.data.splits["test"].statistics["audio"].numpy()
    assert numbers.shape == clean.shape and not np.allclose(numbers, clean)


def test_a_step_made_of_a_dropped_frame_is_not_observed():
    maker = degrader(configured(audio=StreamData(pool=4, limit=3)))
    split = maker("test", missing(rate=0.1))
    steps = maker.data.splits["test"].streams["audio"]
    same = (split.streams["audio"].values == steps.values).all(axis=1)
    assert np.array_equal(split.observed["audio"].values, same) and 0 < same.sum() < len(same)


def test_training_with_nothing_missing_is_the_very_data():
    cfg = toys.toy_config()
    raw = read_corpus(cfg)
    data = prepare(raw, cfg, Needs())
    assert with_missing(raw, cfg, Needs(degraded=True), data) is data
    assert data.splits["train"].rows(torch.arange(3)).degraded is None


def test_training_degrades_every_split_or_gives_both_views():
    cfg = configured(missing=missing())
    raw = read_corpus(cfg)
    data = prepare(raw, cfg, Needs())
    plain = with_missing(raw, cfg, Needs(), data)
    for name in ("train", "valid", "test"):
        assert not np.array_equal(plain.splits[name].streams["audio"].values, data.splits[name].streams["audio"].values)
    assert plain.description["missing"] == {"kind": "frames", "rate": 0.5, "seed": 111, "modalities": []}
    both = with_missing(raw, cfg, Needs(degraded=True), data)
    batch = both.splits["train"].rows(torch.tensor([4, 2, 9]))
    clean, left = (
        data.splits["train"].rows(torch.tensor([4, 2, 9])),
        plain.splits["train"].rows(torch.tensor([4, 2, 9])),
    )
    for name, stream in batch.streams.items():
        assert torch.equal(stream.data, clean.streams[name].data) and stream.observed is None
        assert torch.equal(batch.degraded[name].data, left.streams[name].data)
    assert both.splits["test"].second is None
    assert not torch.equal(
        everything(both.splits["test"]).streams["audio"].data, everything(data.splits["test"]).streams["audio"].data
    )


def test_both_views_have_equal_steps_where_a_modality_is_gone():
    cfg = configured(missing=missing("modality", 1, modalities=("audio",)))
    raw = read_corpus(cfg)
    both = with_missing(raw, cfg, Needs(degraded=True), prepare(raw, cfg, Needs()))
    batch = both.splits["train"].rows(torch.arange(6))
    assert batch.degraded["audio"].data.shape == batch.streams["audio"].data.shape
    assert not batch.degraded["audio"].mask.any() and not batch.degraded["audio"].observed.any()
    part = batch.rows(torch.tensor([5, 1]))
    assert torch.equal(part.degraded["vision"].data, batch.degraded["vision"].data[[5, 1]])
    assert torch.equal(part.degraded["vision"].observed, batch.degraded["vision"].observed[[5, 1]])


def test_both_views_are_augmented_alike():
    cfg = configured(missing=missing(rate=0.3), audio=StreamData(statistics=True))
    raw = read_corpus(cfg)
    both = with_missing(raw, cfg, Needs(degraded=True), prepare(raw, cfg, Needs()))
    batch = both.splits["train"].rows(torch.arange(12))
    torch.manual_seed(0)
    after = augmented(batch, AugmentConfig(noise=0.5, time_mask=0.5, drop_modality=0.5))
    for name in ("audio", "vision"):
        before, view, whole = batch.degraded[name], after.degraded[name], after.streams[name]
        assert torch.equal(view.mask, whole.mask)
        seen = before.observed & view.mask
        steps = view.data.shape[2] - view.whole
        change, wanted = view.data - before.data, whole.data - batch.streams[name].data
        torch.testing.assert_close(change[seen], wanted[seen])
        dropped = view.mask & ~before.observed
        assert torch.equal(view.data[dropped][:, :steps], before.data[dropped][:, :steps])
        assert not view.data[~view.mask].any() and dropped.any()


def test_the_name_of_a_run_changes_with_the_rate_alone():
    cfg = toys.toy_config()
    named = {run_path(configured(missing=m), Path("runs")) for m in (MissingData(), missing("noise", 0, seed=5))}
    assert named == {run_path(cfg, Path("runs"))}
    assert run_path(configured(missing=missing()), Path("runs")) not in named


# Text and explanations


WORDS = ["the film was good .", "", "i liked it", "a story and a story and a story", "very bad"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    pytest.importorskip("transformers")
    return str(tiny_encoder.write(tmp_path_factory.mktemp("encoder") / "tiny"))


def spoken(cfg):
    """The toy corpus with other transcripts and a written explanation of each face."""
    raw = read_corpus(cfg)
    clips = [
        replace(clip, text=WORDS[n % len(WORDS)], explanations={"vision": "low pitch and high pitch"})
        for n, clip in enumerate(raw.clips)
    ]
    return replace(raw, clips=tuple(clips))


def text_degrader(cfg, cache: Path) -> Degrader:
    raw, needs = spoken(cfg), Needs(explanations=("audio", "vision"))
    return Degrader(raw, cfg, needs, prepare(raw, cfg, needs, cache=cache), cache=cache)


def test_tokens_become_the_unknown_one_between_the_special_ones(encoder, tmp_path):
    text = TextData(mode="finetune", encoder=encoder, max_tokens=12)
    maker = text_degrader(configured(text=text, explainer="stored"), tmp_path)
    clean, left = maker.data.splits["test"], maker("test", missing(rate=1))
    unknown = tiny_encoder.SPECIAL.index("[UNK]")
    for stream, before in (
        (left.streams["text"], clean.streams["text"]),
        (left.explanations["vision"], clean.explanations["vision"]),
    ):
        assert stream.lengths.tolist() == before.lengths.tolist() and 0 in clean.streams["text"].lengths
        for row in range(len(stream)):
            if len(stream[row]):
                assert stream[row].tolist() == [before[row][0], *[unknown] * (len(before[row]) - 2), before[row][-1]]


def test_frozen_states_are_those_of_the_degraded_tokens(encoder, tmp_path):
    from moodal.layers.pretrained import TextEncoder

    frozen = configured(text=TextData(mode="frozen", encoder=encoder, max_tokens=12), explainer="stored")
    tuned = configured(text=TextData(mode="finetune", encoder=encoder, max_tokens=12), explainer="stored")
    states = text_degrader(frozen, tmp_path)("test", missing())
    ids = text_degrader(tuned, tmp_path)("test", missing()).streams["text"]
    model = TextEncoder(encoder).eval()
    for row in np.flatnonzero(ids.lengths)[:6]:
        one = torch.from_numpy(ids[row])[None]
        wanted = model(one, torch.ones_like(one, dtype=torch.bool))[0].detach().numpy()
        np.testing.assert_allclose(states.streams["text"][row], wanted, atol=1e-5)
    assert np.array_equal(states.observed["text"].offsets, ids.offsets)


def test_text_that_is_left_alone_comes_from_the_cache_of_the_clean_one(encoder, tmp_path, monkeypatch):
    from moodal.features import text as features

    cfg = configured(text=TextData(mode="frozen", encoder=encoder, max_tokens=12), explainer="stored")
    maker = text_degrader(cfg, tmp_path)
    monkeypatch.setattr(features, "TextEncoder", lambda *_: pytest.fail("a text was encoded again"))
    left = maker("test", missing(modalities=("audio",)))
    assert np.array_equal(left.streams["text"].values, maker.data.splits["test"].streams["text"].values)


def test_an_explanation_goes_with_its_modality(encoder, tmp_path):
    text = TextData(mode="finetune", encoder=encoder, max_tokens=12)
    maker = text_degrader(configured(text=text, explainer="stored"), tmp_path)
    left = maker("test", missing("modality", 0.5, modalities=("vision",)))
    assert np.array_equal(left.explanations["vision"].lengths > 0, left.streams["vision"].lengths > 0)
    assert 0 < np.count_nonzero(left.explanations["vision"].lengths) < len(left)


def test_measured_explanations_are_measured_again(encoder, tmp_path):
    text = TextData(mode="finetune", encoder=encoder, max_tokens=30)
    cfg = configured(text=text, explainer="measured")
    raw, needs = read_corpus(cfg), Needs(explanations=("vision",))
    maker = Degrader(raw, cfg, needs, prepare(raw, cfg, needs, cache=tmp_path), cache=tmp_path)
    clean = maker.data.splits["test"].explanations["vision"]
    still = maker("test", missing("blur", 1)).explanations["vision"]
    noisy = maker("test", missing("noise", 0.9)).explanations["vision"]
    assert [row.tolist() for row in map(clean.__getitem__, range(5))] == [still[row].tolist() for row in range(5)]
    assert any(
        clean[row].tolist() != noisy[row].tolist() for row in range(len(clean))
    )  # a blur keeps the mean, noise does not


def test_explanations_of_which_none_is_left_are_empty_rows(encoder, tmp_path):
    text = TextData(mode="finetune", encoder=encoder, max_tokens=30)
    cfg = configured(text=text, explainer="measured")
    raw, needs = read_corpus(cfg), Needs(explanations=("audio", "vision"))
    maker = Degrader(raw, cfg, needs, prepare(raw, cfg, needs, cache=tmp_path), cache=tmp_path)
    left = maker("test", missing("modality", 1))
    assert set(left.explanations) == set(maker.data.splits["test"].explanations) == {"audio", "vision"}
    assert not any(stream.lengths.any() for stream in left.explanations.values())
    assert not everything(left).explanations["vision"].mask.any()


def test_an_encoder_that_is_not_here_has_the_published_unknown_token():
    from moodal.features.text import unknown_id

    absent = "no-such/encoder-anywhere"
    assert unknown_id(absent, {"model_type": "bert"}) == 100
    with pytest.raises(MoodalError, match="not on this machine"):
        unknown_id(absent, {"model_type": "roberta"})


# Sentences


def test_what_cannot_be_degraded_is_a_sentence(made):
    soundless = toys.toy_config(reader=replace(toys.READER, modalities=("text", "audio")))
    for kind, asked, told in [
        ("blur", (), r"blur is meant for vision, which synthetic does not have; .*\(text, audio\)"),
        ("frames", ("vision",), "synthetic has no vision, so frames cannot happen to it; it has text, audio"),
    ]:
        with pytest.raises(DataError, match=told):
            degrader(soundless)("test", missing(kind, modalities=asked))
    short = replace(made.raw, streams={**made.raw.streams, "vision": made.raw.streams["vision"].truncated(1)})
    data = prepare(short, made.cfg, Needs())
    for kind in ("blur", "freeze"):
        with pytest.raises(DataError, match=f"vision of synthetic is one step a clip, so {kind} changes nothing"):
            Degrader(short, made.cfg, Needs(), data)("test", missing(kind))


def test_noise_on_tokens_is_a_sentence(encoder, tmp_path):
    text = TextData(mode="finetune", encoder=encoder, max_tokens=12)
    maker = text_degrader(configured(text=text, explainer="stored"), tmp_path)
    with pytest.raises(DataError, match="noise changes values, and the text of synthetic is made of tokens"):
        maker("test", missing("noise", modalities=("text",)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 1.5}, "rate is 1.5; it is a share from 0 to 1"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"kind": "noise", "rate": 1.0}, "noise alone has no signal"),
        ({"seed": -1}, "seed is -1"),
        ({"modalities": ("smell",)}, r"modalities is \['smell'\]"),
        ({"modalities": ("text", "text")}, "each once"),
    ],
)
def test_impossible_settings_are_sentences(settings, told):
    with pytest.raises(MoodalError, match=told):
        MissingData(**settings)


def test_settings_are_off_by_default():
    assert DataConfig().missing == MissingData() and MissingData().rate == 0
