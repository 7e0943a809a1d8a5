"""TEXT: independent of batch mates and padding, routed by text alone, every variant trainable, nothing NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, DataSpec, Needs, Regression, StreamSpec
from moodal.methods.text import TEXT, TextConfig

WIDTHS = {"text": 12, "audio": 5, "vision": 7}
ROLES = ("audio", "vision")
SMALL = {
    "width": 8,
    "heads": 2,
    "head_width": 4,
    "feed_forward": 8,
    "layers": 2,
    "expert_hidden": 8,
    "temporal_inner": 8,
}


def spec(
    streams: tuple[str, ...] = ("text", "audio", "vision"), roles: tuple[str, ...] = ROLES, **changes: Any
) -> DataSpec:
    text = StreamSpec("features", WIDTHS["text"])
    facts = {
        "streams": {m: StreamSpec("features", WIDTHS[m]) for m in streams},
        "explanations": dict.fromkeys(roles, text),
        "task": Regression(-3.0, 3.0),
    }
    return DataSpec(**(facts | changes))


def build(given: DataSpec | None = None, **settings: Any) -> TEXT:
    torch.manual_seed(0)
    method = TEXT(TextConfig(**({"max_steps": 20} | SMALL | settings)), spec() if given is None else given)
    for name, parameter in method.named_parameters():
        if name.endswith("router.logits.weight"):
            nn.init.normal_(parameter, std=2.0)  # so that rows choose different experts
    return method.eval()


def stream(rows: int, width: int, steps: int) -> Stream:
    lengths = torch.randint(1, steps + 1, (rows,))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Stream(torch.randn(*mask.shape, width) * mask[..., None], mask)


def batch(rows: int = 6, given: DataSpec | None = None, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    given = spec() if given is None else given
    classes = isinstance(given.task, Classification)
    return Batch(
        ids=tuple(map(str, range(rows))),
        index=torch.arange(rows),
        streams={m: stream(rows, s.width, 9) for m, s in given.streams.items()},
        explanations={r: stream(rows, s.width, 6) for r, s in given.explanations.items()},
        target=Target(
            torch.randint(0, 3, (rows,)) if classes else torch.randn(rows), torch.ones(rows, dtype=torch.bool)
        ),
    )


def longer(given: Stream, extra: int = 4) -> Stream:
    """The same stream with more padding, which holds rubbish."""
    rubbish = torch.randn(*given.data.shape[:1], extra, given.data.shape[2])
    return Stream(torch.cat([given.data, rubbish], dim=1), F.pad(given.mask, (0, extra)))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ---- inference is a function of the row ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT.ablations)
def test_a_row_alone_in_company_reordered_or_padded_has_one_score(name: str):
    method = build(**{key.removeprefix("model."): value for key, value in TEXT.ablations[name].items()})
    whole = batch(64)
    scores = method(whole).prediction
    same(method(whole.rows(torch.tensor([5]))).prediction, scores[5:6])
    order = torch.randperm(64)
    same(method(whole.rows(order)).prediction, scores[order])
    padded = replace(
        whole,
        streams={m: longer(s) for m, s in whole.streams.items()},
        explanations={r: longer(s) for r, s in whole.explanations.items()},
    )
    same(method(padded).prediction, scores)


def test_evaluation_is_deterministic_and_noise_is_for_training():
    method, given = build(), batch()
    assert method(given).prediction.equal(method(given).prediction)
    method.train()
    routing = [method(given).inspection["routing"] for _ in range(2)]
    assert not routing[0].equal(routing[1])


def test_capacity_binds_in_training_and_not_in_evaluation():
    free, full = build(), build(capacity=0.2, noise=False)
    given = batch(32)
    same(full(given).prediction, free(given).prediction)
    full.train()
    assert full(given).features["kept"].sum() < free(given).features["kept"].sum()


# ---- routing -------------------------------------------------------------------------------------------------------


def test_routing_depends_on_text_alone():
    method, given, other = build(), batch(32), batch(32, seed=1)
    first = method(given).inspection["routing"]
    untouched = replace(other, streams={**other.streams, "text": given.streams["text"]})
    assert method(untouched).inspection["routing"].equal(first)
    changed = replace(given, streams={**given.streams, "text": other.streams["text"]})
    assert not method(changed).inspection["routing"].equal(first)
    assert len({tuple(row) for row in first[:, 0].gt(0).tolist()}) > 1  # rows really choose different experts


def test_without_text_every_row_takes_the_same_experts():
    method = build(modalities=("audio", "vision"))
    routing = method(batch(8)).inspection["routing"]
    same(routing, routing[:1].expand_as(routing))


def test_experts_nobody_chose_get_no_gradient():
    method, given = build(top_k=2), batch(1)
    losses = method.loss(given)
    losses.total.backward()
    for layer, chosen in zip(method.mixture.layers, losses.output.inspection["routing"][0] > 0):
        assert layer.experts.first.grad.flatten(1).ne(0).any(dim=1).equal(chosen)


def test_regularisers_are_reported_and_off_by_default():
    given = batch()
    plain = build(noise=False).loss(given)
    same(plain.total, plain.parts["task"])
    weighted = build(noise=False, balance=0.5, router_z=0.25).loss(given)
    parts = weighted.parts
    same(weighted.total, parts["task"] + 0.5 * parts["balance"] + 0.25 * parts["router_z"])


def test_distillation_towards_text_is_off_by_default_and_never_changes_a_prediction():
    given, plain = batch(), build(noise=False)
    assert plain.views is None and "distillation" not in plain.loss(given).parts
    method = build(noise=False, distillation=0.5)
    method.load_state_dict(plain.state_dict(), strict=False)
    losses = method.loss(given)
    same(losses.output.prediction, plain(given).prediction)
    same(losses.total, losses.parts["task"] + 0.5 * losses.parts["distillation"])
    losses.total.backward()
    assert all(p.grad is not None for p in method.views.parameters())


def test_the_text_teaches_voice_and_face_and_nobody_teaches_the_text():
    method, given = build(distillation=1.0), batch()
    output = method(given)
    views = method.views({m: output.features[f"{m}_sequence"][:, 0] for m in WIDTHS})
    told = [
        (0.5 * ((views.observations[i] - given.target.value).square() + (views.codes[i] - given.target.value).square()))
        + 0.5 * (views.observations[i] - views.codes[i]).square()
        + 0.5 * (views.observations[0] - views.codes[i]).square() * (i > 0)
        for i in range(3)
    ]
    same(method.loss(given).parts["distillation"], torch.stack(told).sum(dim=0).mean())


def test_a_missing_stream_is_neither_taught_nor_asked():
    method, given = build(distillation=1.0), batch()
    lacking = replace(given, streams={**given.streams, "vision": gone(given.streams["vision"])})
    losses = method.loss(lacking)
    losses.total.backward()
    assert all(p.grad.eq(0).all() for p in method.views.coders["vision"].parameters())
    assert any(p.grad.ne(0).any() for p in method.views.coders["audio"].parameters())


# ---- variants ------------------------------------------------------------------------------------------------------


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def test_parameter_counts_differ_as_expected():
    full = build()
    count = {
        name: parameters(build(**{key.removeprefix("model."): value for key, value in changes.items()}))
        - parameters(full)
        for name, changes in TEXT.ablations.items()
    }
    told = sum(parameters(part[f"{m}_explanation"]) for part in (full.projections, full.sequences) for m in ROLES)
    heard = sum(parameters(part[m]) for part in (full.projections, full.sequences) for m in ROLES)
    width, experts, hidden = SMALL["width"], 5, SMALL["expert_hidden"]
    routed = parameters(full.mixture.layers[0].router) + (experts - 1) * (2 * width * hidden + width + hidden)
    assert count["full"] == 0
    assert count["without explanations"] == -told - parameters(full.alignments)
    assert count["text only, with explanations"] == -heard - parameters(full.alignments)
    assert count["explanation alignment: linear"] == 2 * (2 * width * width + width) - parameters(full.alignments)
    assert count["temporal alignment: concatenation"] == -parameters(full.temporal)
    assert count["temporal alignment: Mamba"] > 0
    assert count["mixture: transformer"] == -SMALL["layers"] * routed
    assert count["without gate fusion"] == -parameters(full.fusion)


@pytest.mark.parametrize("name", TEXT.ablations)
def test_every_variant_learns_eight_rows(name: str):
    method = build(
        **{key.removeprefix("model."): value for key, value in TEXT.ablations[name].items()}, head_dropout=0.0
    )
    given = batch(8)
    method.train()
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    first = method.loss(given).total.item()
    for _ in range(40):
        optimiser.zero_grad()
        losses = method.loss(given)
        losses.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
        optimiser.step()
    assert losses.total.item() < 0.3 * first


STREAMS = [("text",), ("audio",), ("vision",), ("text", "audio"), ("text", "vision"), ("audio", "vision")]
SUBSETS = [(n, s) for n in TEXT.ablations for s in STREAMS if "text" in s or not n.startswith("text only")]


@pytest.mark.parametrize(("name", "streams"), SUBSETS)
@pytest.mark.parametrize("roles", [(), ("audio",), ROLES])
def test_every_variant_works_on_any_subset_of_streams(name: str, streams: tuple[str, ...], roles: tuple[str, ...]):
    given = spec(streams, roles)
    method = build(given, **{key.removeprefix("model."): value for key, value in TEXT.ablations[name].items()})
    losses = method.loss(batch(3, given))
    losses.total.backward()
    assert losses.total.isfinite() and losses.output.prediction.shape == (3,)
    assert losses.output.inspection["gates"].shape == (3, len(method.segments))
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_absent_streams_build_no_parameters():
    names = {
        name.split(".")[1] for name, _ in build(spec(("text",), ())).named_parameters() if name.startswith("sequences")
    }
    assert names == {"text"}


def test_classification_gives_logits():
    given = spec(task=Classification(("a", "b", "c")))
    losses = build(given, label_smoothing=0.1).loss(batch(4, given))
    losses.total.backward()
    assert losses.output.prediction.shape == (4, 3) and losses.total.isfinite()


# ---- missing streams and explanations ------------------------------------------------------------------------------


def gone(given: Stream, rows: slice = slice(None)) -> Stream:
    mask = given.mask.clone()
    mask[rows] = False
    return Stream(given.data, mask)


@pytest.mark.parametrize("missing", ["text", "audio", "vision"])
def test_a_missing_modality_is_finite_and_leaves_the_other_rows_alone(missing: str):
    method, given = build(), batch()
    lacking = replace(given, streams={**given.streams, missing: gone(given.streams[missing], slice(0, 2))})
    scores = method(lacking).prediction
    assert scores.isfinite().all()
    same(scores[2:], method(given).prediction[2:])
    method.loss(lacking).total.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_nothing_at_all_is_still_finite():
    method, given = build(), batch()
    empty = replace(
        given,
        streams={m: gone(s) for m, s in given.streams.items()},
        explanations={r: gone(s) for r, s in given.explanations.items()},
    )
    scores = method(empty).prediction
    assert scores.isfinite().all()
    same(scores, scores[:1].expand_as(scores))


def test_an_absent_key_is_the_same_as_a_masked_row():
    method, given = build(), batch()
    masked = replace(given, streams={**given.streams, "vision": gone(given.streams["vision"])}, explanations={
        r: gone(s) for r, s in given.explanations.items()
    })  # fmt: skip
    absent = replace(given, streams={m: s for m, s in given.streams.items() if m != "vision"}, explanations={})
    same(method(masked).prediction, method(absent).prediction)


# ---- text tokens ---------------------------------------------------------------------------------------------------


class TinyEncoder(nn.Module):
    """Stands for a pretrained encoder; counts its calls."""

    def __init__(self, name_or_path: str):
        super().__init__()
        self.width, self.name, self.calls = WIDTHS["text"], name_or_path, 0
        self.words = nn.Embedding(30, self.width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return self.words(ids) * mask.unsqueeze(-1)


def token_spec() -> DataSpec:
    tokens = StreamSpec("tokens", WIDTHS["text"], "tiny")
    streams = {"text": tokens, "audio": StreamSpec("features", 5), "vision": StreamSpec("features", 7)}
    return DataSpec(streams=streams, task=Regression(-3.0, 3.0), explanations=dict.fromkeys(ROLES, tokens))


def token_batch(rows: int = 4) -> Batch:
    def ids(steps: int) -> Stream:
        mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
        return Stream(torch.randint(1, 30, (rows, steps)) * mask, mask)

    given = batch(rows)
    return replace(given, streams={**given.streams, "text": ids(7)}, explanations={"audio": ids(5), "vision": ids(9)})


def test_all_texts_go_through_the_encoder_in_one_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moodal.layers.pretrained.TextEncoder", TinyEncoder)
    method, given = build(token_spec()), token_batch()
    scores = method(given).prediction
    assert method.encoder.calls == 1 and method.encoder.name == "tiny" and method.backbone() is method.encoder
    states = {
        name: Stream(method.encoder.words(s.data) * s.mask.unsqueeze(-1), s.mask)
        for name, s in {"text": given.streams["text"], **given.explanations}.items()
    }
    features = build()
    features.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("encoder.")})
    told = {role: states[role] for role in ROLES}
    same(
        features(replace(given, streams={**given.streams, "text": states["text"]}, explanations=told)).prediction,
        scores,
    )
    assert [group.name for group in method.stages()[0].passes[0].groups["main"]] == ["backbone", "main"]


# ---- needs, settings, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "roles", "comment"),
    [
        ({}, ("audio", "vision"), True),
        ({"explanations": False}, (), False),
        ({"comment": False}, ("audio", "vision"), False),
        ({"modalities": ("text",)}, ("audio", "vision"), True),
        ({"modalities": ("text", "audio")}, ("audio",), True),
        ({"modalities": ("audio", "vision")}, ("audio", "vision"), False),
    ],
)
def test_needs_follow_the_settings(settings: dict[str, Any], roles: tuple[str, ...], comment: bool):
    cfg = TextConfig(**settings)
    assert TEXT.needs(cfg) == Needs(modalities=cfg.modalities, explanations=roles, comment=comment)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"top_k": 6}, r"top_k is 6; it lies between 1 and experts \(5\)"),
        ({"modalities": ()}, "modalities is"),
        ({"modalities": ("text", "smell")}, "smell"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"capacity": 0.0}, "capacity is 0.0"),
        ({"heads": 0}, "heads is 0"),
    ],
)
def test_faulty_settings_are_named(settings: dict[str, Any], sentence: str):
    with pytest.raises(MoodalError, match=sentence):
        TextConfig(**settings)


def test_too_long_a_stream_names_the_setting():
    with pytest.raises(MoodalError, match=r"text has 9 steps and model\.max_steps allows 4"):
        build(max_steps=4)(batch())


def test_a_corpus_without_the_chosen_streams_is_refused():
    with pytest.raises(MoodalError, match="None of audio is in this corpus, which has text"):
        build(spec(("text",), ()), modalities=("audio",))


# ---- compilation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"capacity": 1.0, "balance": 0.1, "reference": True}, {"distillation": 0.1}])
def test_training_step_is_one_graph(settings: dict[str, Any]):
    """No step depends on values or waits for the host: the whole loss traces into a single graph."""
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile does not support this Python")
    method, given = build(noise=False, head_dropout=0.0, layers=1, **settings).train(), batch()
    compiled = torch.compile(lambda b: method.loss(b).total, fullgraph=True, backend="eager")
    same(compiled(given), method.loss(given).total)
