"""MIB: the paper's parameter counts, what the bottlenecks cost and pass on, its three forms, the published computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.method import Output
from moodal.core.spec import MODALITIES, Classification, DataSpec, Regression, StreamSpec, Task
from moodal.layers.fusion_operators import Operator
from moodal.methods.mib import MIB, MIBConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 8, "hidden": 12, "heads": 2, "layers": 2}
STEPS = {"text": 6, "audio": 9, "vision": 5}
FORMS = ("early", "late", "complete")
#: BERT-base without its pooler; the paper counts it in.
BERT = 108_891_648


def spec(text: int = 12, audio: int = 5, vision: int = 7, *, task: Task | None = None) -> DataSpec:
    widths = {"text": text, "audio": audio, "vision": vision}
    return DataSpec({m: StreamSpec("features", w) for m, w in widths.items()}, task or Regression(-3.0, 3.0))


def build(given: DataSpec | None = None, *, spread: bool = True, **settings: Any) -> MIB:
    """A small method; ``spread``: weights far from the small ones it starts with, so that everything matters."""
    torch.manual_seed(0)
    method = MIB(MIBConfig(**(SMALL | settings)), given or spec())
    for parameter in method.parameters() if spread else ():
        nn.init.normal_(parameter, std=0.4)
    return method.eval()


def batch(rows: int = 6, *, task: Task | None = None) -> Batch:
    torch.manual_seed(1)
    streams = {}
    for m, stream in spec().streams.items():
        mask = torch.arange(STEPS[m]) < torch.randint(1, STEPS[m] + 1, (rows, 1))
        streams[m] = Stream(torch.randn(*mask.shape, stream.width) * mask[..., None], mask)
    value = torch.randint(0, 3, (rows,)) if isinstance(task, Classification) else torch.randn(rows)
    target = Target(value, torch.ones(rows, dtype=torch.bool))
    return Batch(tuple(map(str, range(rows))), torch.arange(rows), streams, target)


def without(given: Batch, modality: str, rows: list[int]) -> Batch:
    stream = given.streams[modality]
    mask = stream.mask.clone()
    mask[rows] = False
    return replace(given, streams={**given.streams, modality: replace(stream, mask=mask)})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def slopes(value: Tensor, module: nn.Module) -> list[bool]:
    """Whether a gradient reaches each parameter."""
    found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [gradient is not None and bool(gradient.any()) for gradient in found]


def singles(output: Output) -> list[Tensor]:
    """The predictions from single modalities."""
    return [output.features[f"{m}_prediction"] for m in MODALITIES]


def test_parameter_counts_are_those_of_the_paper():
    """Table XI of the paper, which counts used modules only."""
    mosi = spec(768, 74, 47)
    wanted = {"early": 109_371_423, "late": 109_681_024, "complete": 109_835_748}
    for form, whole in wanted.items():
        assert BERT + count(MIB(MIBConfig(form=form), mosi)) == whole, form
    method = MIB(MIBConfig(form="early"), mosi)
    assert BERT + count(method) - count(method.bottlenecks) == 109_216_699  # the network without a bottleneck
    assert BERT + count(MIB(MIBConfig(), spec(768, 74, 35))) == 109_833_948
    method = MIB(MIBConfig(), mosi)
    assert {count(block) for block in method.bottlenecks.values()} == {154_724}
    assert {count(head) for head in (*method.heads.values(), method.head)} == {51}
    assert {count(method.sequences[m].encoder) for m in ("audio", "vision")} == {92_050}


def test_it_starts_with_small_weights_and_narrow_codes():
    method = build(spread=False, width=50, heads=5, hidden=1024)
    linear = torch.cat([part.weight.detach().flatten() for part in method.modules() if isinstance(part, nn.Linear)])
    assert float(linear.std()) == pytest.approx(0.02, rel=0.02) and abs(float(linear.mean())) < 1e-3
    parts = method.loss(batch()).parts
    assert {name for name in parts if name.endswith("divergence")} == {f"{n}_divergence" for n in method.codes}
    for name in method.codes:
        assert float(parts[f"{name}_divergence"]) == pytest.approx(4.50338, rel=0.02)


def test_without_noise_and_price_it_is_the_plain_network():
    method, given = build(beta=0.0, noise=False), batch()
    losses = method.loss(given)
    predictions = (losses.output.prediction, *singles(losses.output))
    torch.testing.assert_close(losses.total, sum((x - given.target.value).abs().mean() for x in predictions))
    for block in method.bottlenecks.values():
        assert not any(slopes(losses.total, block.code.deviation))
        assert any(slopes(losses.total, block.code.mean))


def test_a_price_reaches_the_deviations():
    method = build(noise=False)
    for block in method.bottlenecks.values():
        assert any(slopes(method.loss(batch()).total, block.code.deviation))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_price_is_beta_times_the_divergences(reduction):
    given, beta = batch(), 0.25
    free = build(beta=0.0, kl_reduction=reduction).loss(given)
    paid = build(beta=beta, kl_reduction=reduction).loss(given)
    price = sum(part for name, part in paid.parts.items() if name.endswith("divergence"))
    torch.testing.assert_close(paid.total, free.total + beta * price)
    nats = paid.output.inspection["nats"].mean(dim=0).sum()  # shown as the sum, whatever is paid
    torch.testing.assert_close(price, nats / (SMALL["width"] if reduction == "mean" else 1))


def test_codes_are_drawn_in_training_only():
    method = build(embedding_dropout=0.0, attention_dropout=0.0, dropout=0.0)
    given = batch()
    assert torch.equal(method(given).prediction, method(given).prediction)
    features = method(given).features
    assert all(torch.equal(features[f"{name}_code"], features[f"{name}_mean"]) for name in method.codes)
    method.train()
    assert not torch.equal(method(given).prediction, method(given).prediction)


def test_as_published_codes_are_drawn_in_evaluation_too():
    method, given = build(reference=True, max_steps=9), batch()
    assert not torch.equal(method(given).prediction, method(given).prediction)


def test_given_noise_replaces_the_draws():
    method, given = build(), batch()
    zeros = {name: torch.zeros(6, 8) for name in method.codes}
    assert torch.equal(method.run(given, zeros).prediction, method(given).prediction)
    ones = {name: torch.ones(6, 8) for name in method.codes}
    features = method.run(given, ones).features
    for name in method.codes:
        wanted = features[f"{name}_mean"] + features[f"{name}_deviation"]
        torch.testing.assert_close(features[f"{name}_code"], wanted)


def test_the_forms_differ_in_where_their_codes_are():
    assert build(form="early").codes == ("fused",) and not build(form="early").heads
    assert build(form="late").codes == ("text", "audio", "vision")
    assert build(form="complete").codes == ("text", "audio", "vision", "fused")
    late = build(form="late")
    features = late(batch()).features
    assert "fused_mean" not in features  # what was fused enters the head as it is
    torch.testing.assert_close(late.head(features["fused"]), late(batch()).prediction)


def test_the_price_of_the_fused_code_reaches_the_codes_of_all_modalities():
    method = build()
    features = method(batch()).features
    price = features["fused_mean"].square().sum() + features["fused_deviation"].square().sum()
    for m in MODALITIES:
        assert any(slopes(price, method.bottlenecks[m])) and not any(slopes(price, method.heads[m]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fusion", ["addition", "concatenation", "multiplication", "tensor", "low_rank", "graph"])
def test_every_form_learns_with_every_fusion(form: str, fusion: Operator):
    method = build(form=form, fusion=fusion).train()
    loss = method.loss(batch()).total
    assert bool(torch.isfinite(loss))
    assert all(any(slopes(loss, part)) for part in method.children() if count(part))


def test_a_product_of_experts_is_a_late_fusion():
    method = build(form="late", fusion="poe")
    features = method(batch()).features
    assert all(any(slopes(method.loss(batch()).total, block)) for block in method.bottlenecks.values())
    precision = 1 + sum(features[f"{m}_deviation"] ** -2 for m in MODALITIES)
    torch.testing.assert_close(features["fused_deviation"], precision**-0.5)
    for form in ("early", "complete"):
        with pytest.raises(MoodalError, match="set form to late"):
            MIBConfig(form=form, fusion="poe")


@pytest.mark.parametrize("fusion", ["concatenation", "multiplication", "poe"])
def test_a_modality_that_is_absent_says_nothing(fusion):
    """Neither its bottleneck nor its head sees a row that lacks it, and the prediction is that of the others."""
    method = build(form="late", fusion=fusion)
    given = without(batch(), "audio", list(range(6)))
    loss = method.loss(given)
    assert not any(slopes(loss.total, method.bottlenecks["audio"]) + slopes(loss.total, method.heads["audio"]))
    before = method(given).prediction
    assert not method(given).inspection["nats"][:, 1].any()
    for parameter in method.bottlenecks["audio"].parameters():
        nn.init.normal_(parameter)
    assert torch.equal(method(given).prediction, before)


def test_the_loss_is_a_mean_over_labelled_rows_whatever_a_row_lacks():
    method, given = build(beta=0.3), without(batch(), "vision", [0, 3])
    valid = torch.tensor([True, True, True, True, False, False])
    given = replace(given, target=replace(given.target, valid=valid))
    whole = method.loss(given)
    single = [method.loss(given.rows(torch.tensor([row]))).total for row in range(4)]
    torch.testing.assert_close(whole.total, torch.stack(single).mean())
    assert int(whole.rows) == 4


def test_classification_has_a_cross_entropy_for_every_prediction():
    task = Classification(("a", "b", "c"))
    method, given = build(spec(task=task), beta=0.0), batch(task=task)
    output = method(given)
    assert output.prediction.shape == (6, 3)
    wanted = sum(F.cross_entropy(x, given.target.value) for x in (output.prediction, *singles(output)))
    torch.testing.assert_close(method.loss(given).total, wanted)


def test_as_published_the_final_error_counts_twice():
    method = build(reference=True, noise=False, max_steps=9)
    losses = method.loss(batch())
    parts = losses.parts
    others = sum(value for name, value in parts.items() if name.endswith("_task"))
    price = sum(value for name, value in parts.items() if name.endswith("_divergence"))
    torch.testing.assert_close(losses.total, 2 * parts["task"] + others + method.cfg.beta * price)


def test_only_as_published_the_padding_counts():
    """The official streams are 50 steps long, and their last one, padding or not, is what is read."""
    given = batch()

    def predicted(**settings: Any) -> Tensor:
        return build(noise=False, **settings)(given).prediction

    assert not torch.allclose(predicted(reference=True, max_steps=9), predicted(reference=True, max_steps=12))
    assert torch.equal(predicted(max_steps=9), predicted(max_steps=12))
    with pytest.raises(MoodalError, match="max_steps"):
        predicted(reference=True, max_steps=8)


def test_the_text_is_read_where_its_whole_convolution_ends():
    block, stream = build().sequences["text"].convolution, batch().streams["text"]
    whole = block(stream.data, stream.mask)
    wanted = torch.stack([row[mask.nonzero().max()] for row, mask in zip(whole, stream.mask)])
    torch.testing.assert_close(block.last(stream.data, stream.mask), wanted)
    torch.testing.assert_close(block.last(stream.data, None), block(stream.data, None)[:, -1])


def test_the_texts_projection_has_a_rate_of_its_own():
    method = build()
    groups = {group.name: group.parameters() for group in method.stages()[0].passes[0].all_groups()}
    assert groups["text_projection"] == [method.sequences["text"].convolution.weight]
    assert sum(map(len, groups.values())) == len(list(method.parameters()))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"heads": 3}, "multiple of heads"), ({"beta": -1.0}, "beta"), ({"dropout": 1.0}, "dropout")],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        MIBConfig(**settings)
