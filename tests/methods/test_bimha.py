"""BIMHA: products of pairs, the attention of three tokens, and the limits in which either says nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import ragged_batch

from moodal.core.batch import Batch, Stream
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.summaries import Summary
from moodal.methods.bimha import BIMHA, PAIRS, BimhaConfig, PairAttention, PairProducts

WIDTHS = {"text": 6, "audio": 3, "vision": 4}
SPEC = DataSpec(streams={m: StreamSpec("features", w) for m, w in WIDTHS.items()}, task=Regression(-3.0, 3.0))
ALL = torch.ones(5, 3, dtype=torch.bool)


def vectors(rows: int = 5) -> dict[str, Summary]:
    return {m: Summary(torch.randn(rows, w), torch.ones(rows, dtype=torch.bool)) for m, w in WIDTHS.items()}


def products(*, shared: bool = False) -> PairProducts:
    torch.manual_seed(0)
    return PairProducts(PAIRS, WIDTHS, 8, shared=shared)


def attention(width: int = 8, heads: int = 2) -> PairAttention:
    torch.manual_seed(0)
    return PairAttention(width, heads=heads)


def method(**settings) -> BIMHA:
    torch.manual_seed(0)
    small = {"width": 16, "heads": 4, "text_width": 8, "audio_width": 4, "vision_width": 4} | settings
    return BIMHA(BimhaConfig(**small), SPEC).eval()


def batch() -> Batch:
    return ragged_batch(WIDTHS)


def entering(block: PairProducts, given: dict[str, Summary], pair: str) -> Tensor:
    """What a pair's private map is given."""
    seen: list[Tensor] = []
    handle = block.private[pair].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(given)
    handle.remove()
    return seen[0]


def test_a_product_is_one_hot_for_unit_vectors_and_of_rank_one_for_all():
    given, block = vectors(1), products()
    given["audio"] = Summary(torch.eye(3)[2:], given["audio"].present)
    given["text"] = Summary(torch.eye(6)[4:5], given["text"].present)
    found = entering(block, given, "audio_text")
    assert found.nonzero().tolist() == [[0, 2 * 6 + 4]] and float(found.max()) == 1.0
    table = entering(block, vectors(), "vision_text").unflatten(1, (4, 6))
    assert torch.linalg.matrix_rank(table).tolist() == [1] * 5


def test_a_product_is_linear_in_each_of_its_modalities():
    given, block = vectors(), products()
    twice = given | {"audio": Summary(2 * given["audio"].vector, given["audio"].present)}
    for pair, factor in (("audio_vision", 2), ("audio_text", 2), ("vision_text", 1)):
        torch.testing.assert_close(entering(block, twice, pair), factor * entering(block, given, pair))


def test_a_silent_modality_leaves_its_pairs_their_biases():
    given, block = vectors(), products()
    given["audio"] = Summary(torch.zeros(5, 3), given["audio"].present)
    tokens, _ = block(given)
    for place, pair in enumerate(("audio_vision", "audio_text")):
        torch.testing.assert_close(tokens[:, place], torch.relu(block.private[pair].bias).expand(5, -1))


def test_the_shared_layer_learns_from_three_pairs_and_a_private_one_from_its_own():
    block = products(shared=True)
    tokens, _ = block(vectors())
    of_shared = [torch.autograd.grad(tokens[:, i].sum(), block.shared.weight, retain_graph=True)[0] for i in range(3)]
    assert all(bool(gradient.any()) for gradient in of_shared)
    tokens[:, 0].sum().backward()
    touched = {name for name, part in block.private.items() if part.weight.grad is not None and part.weight.grad.any()}
    assert touched == {"audio_vision"}


def test_weights_of_the_attention_sum_to_one_and_are_even_without_a_query():
    block, tokens = attention(), torch.randn(5, 3, 8)
    _, weights = block(tokens, ALL)
    assert weights.shape == (5, 2, 3, 3)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5, 2, 3))
    nn.init.zeros_(block.query.weight)
    mixed, weights = block(tokens, ALL)
    torch.testing.assert_close(weights, torch.full((5, 2, 3, 3), 1 / 3))
    mean = block.out(block.value(tokens).mean(dim=1))
    torch.testing.assert_close(mixed, mean.unsqueeze(1).expand(-1, 3, -1))


def test_pairs_in_another_order_give_the_same_in_that_order():
    block, tokens, order = attention(), torch.randn(5, 3, 8), [2, 0, 1]
    mixed, weights = block(tokens, ALL)
    turned, other = block(tokens[:, order], ALL)
    torch.testing.assert_close(turned, mixed[:, order])
    torch.testing.assert_close(other, weights[:, :, order][..., order])


def test_without_an_output_map_the_residual_is_all_there_is():
    model, clips = method(), batch()
    nn.init.zeros_(model.attention.out.weight)
    nn.init.zeros_(model.attention.out.bias)
    plain = method(attention=False)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("attention")})
    torch.testing.assert_close(model(clips).prediction, plain(clips).prediction)


def test_a_pair_that_a_row_lacks_is_attended_to_by_nobody():
    model, clips = method(), batch()
    mask = clips.streams["audio"].mask.clone()
    mask[1] = False
    lacking = Batch(
        ids=clips.ids, index=clips.index, streams={**clips.streams, "audio": Stream(clips.streams["audio"].data, mask)}
    )
    output = model(lacking)
    found = output.inspection["attention"][1]
    assert not found[:, :2].any() and bool((found[:, 2] == 1).all())
    assert not output.features["pairs"][1, :2].any() and bool(output.prediction.isfinite().all())
    torch.testing.assert_close(output.prediction[[0, 2, 3]], model(clips).prediction[[0, 2, 3]])


def test_parameters_of_the_small_case():
    blocks = nn.ModuleList(
        [
            PairProducts(PAIRS, {"text": 32, "audio": 16, "vision": 16}, 64, shared=True),
            PairAttention(64, heads=4),
            method(width=64).head,
        ]
    )
    assert sum(p.numel() for p in blocks.parameters()) == 119_297


@pytest.mark.parametrize(
    ("modalities", "pairs"), [(("text",), 0), (("text", "vision"), 1), (("text", "audio", "vision"), 3)]
)
def test_there_is_a_pair_for_every_two_modalities(modalities, pairs):
    model = method(modalities=modalities)
    output = model(batch())
    assert len(model.pairs) == pairs and output.prediction.shape == (4,)
    assert ("attention" in output.inspection) == bool(pairs)


def test_heads_that_do_not_divide_the_width_are_refused_in_a_sentence():
    with pytest.raises(MoodalError, match="heads is 3; it must divide width"):
        BimhaConfig(heads=3)
