"""MCMulT: MulT as its special case, both directions from the old levels, and every way of reading several levels."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.crossmodal import Sight
from moodal.methods.mcmult import LevelAttention, MCMulT, McmultConfig, Towers
from moodal.methods.mult import MulT, MultConfig

WIDTHS = {"text": 6, "audio": 3, "vision": 4}
SMALL = {"width": 8, "heads": 2, "memory_layers": 1}
LEVELS = ("all", "lowest", "same", "lowest+same")
COMBINE = ("softmax", "mean", "sum", "gate", "concat")
#: every setting of how a block reads.
SETTINGS = [
    {"levels": a, "source": b, "combine": c, "projections": d}
    for a, b, c, d in product(LEVELS, ("cooperative", "self"), COMBINE, ("own", "shared"))
]
SPEC = DataSpec(streams={m: StreamSpec("features", w) for m, w in WIDTHS.items()}, task=Regression(-3.0, 3.0))


def build(**settings: Any) -> MCMulT:
    torch.manual_seed(0)
    return MCMulT(McmultConfig(**(SMALL | settings)), SPEC).eval()


def batch(rows: int = 4) -> Batch:
    torch.manual_seed(1)
    streams = {}
    for m, steps in (("text", 4), ("audio", 6), ("vision", 5)):
        mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
        streams[m] = Stream(torch.randn(rows, steps, WIDTHS[m]), mask)
    target = Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool))
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams, target=target)


def with_weights_of(method: MCMulT, plain: MulT) -> MCMulT:
    """``method`` with MulT's weights: each direction of a pair is the encoder of that target and source."""
    found = {}
    for name, value in plain.state_dict().items():
        for a, b in method.pairs:
            for ours, theirs in (("first", f"{a}_from_{b}"), ("second", f"{b}_from_{a}")):
                own = f"crossmodal.{a}_{b}.{ours}"
                name = name.replace(f"crossmodal.{theirs}.layers", own).replace(
                    f"crossmodal.{theirs}.norm", f"{own}_norm"
                )
        if name.startswith("crossmodal."):
            name = name.replace(".attention.", ".attention.lowest.")
        found[name] = value
    missing, unexpected = method.load_state_dict(found, strict=False)
    assert not unexpected and not missing
    return method


def mult(layers: int) -> MulT:
    torch.manual_seed(0)
    return MulT(MultConfig(**SMALL, layers=layers), SPEC).eval()


# ---- MulT inside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_with_one_block_it_is_mult_exactly(settings: dict[str, Any]):
    plain, given = mult(1), batch()
    method = with_weights_of(build(layers=1, **settings), plain)
    assert method(given).prediction.equal(plain(given).prediction)


@pytest.mark.parametrize("source", ["cooperative", "self"])
def test_with_the_lowest_level_it_is_mult_exactly(source: str):
    plain, given = mult(3), batch()
    method = with_weights_of(build(layers=3, levels="lowest", source=source), plain)
    ours, theirs = method.loss(given), plain.loss(given)
    assert ours.total.equal(theirs.total)
    slopes = torch.autograd.grad(ours.total, list(method.parameters()))
    others = torch.autograd.grad(theirs.total, list(plain.parameters()))
    assert sum(float(s.square().sum()) for s in slopes) == pytest.approx(
        sum(float(s.square().sum()) for s in others), rel=1e-5
    )


# ---- sizes ---------------------------------------------------------------------------------------------------------


def of_a_direction(layers: int, **settings: Any) -> int:
    towers = Towers(McmultConfig(width=40, heads=8, layers=layers, **settings), "text", "audio")
    return sum(p.numel() for p in (*towers.first.parameters(), *towers.first_norm.parameters()))


def test_parameter_counts():
    """The specification also counts the one weight of each block that reads a single level, which has no effect."""
    assert of_a_direction(4) == 118_330 - 1
    assert of_a_direction(4, levels="lowest") == 78_960
    assert of_a_direction(4, combine="mean") == 118_330 - 10
    assert of_a_direction(4, levels="lowest+same") == 78_960 + 3 * (4 * 40**2 + 4 * 40 + 2)
    shared = of_a_direction(4, projections="shared", combine="mean")
    assert shared == 78_960 + 6 * 40**2  # a key map for each level but the lowest


def test_a_hierarchy_of_its_own_has_the_levels_that_are_read():
    counts = {levels: build(layers=3, source="self", levels=levels) for levels in LEVELS}
    found = {name: len(method.crossmodal["text_audio"].first_source) for name, method in counts.items()}
    assert found == {"all": 2, "lowest": 0, "same": 2, "lowest+same": 2}


# ---- both directions together --------------------------------------------------------------------------------------


def towers(layers: int, **settings: Any) -> Towers:
    torch.manual_seed(0)
    return Towers(McmultConfig(**SMALL, layers=layers, **settings), "text", "audio").eval()


def sequences() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    first, second = torch.randn(2, 4, 8), torch.randn(2, 6, 8)
    return (first, torch.ones(2, 4, dtype=torch.bool)), (second, torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize("source", ["cooperative", "self"])
def test_exchanging_the_two_and_their_weights_exchanges_the_results(source: str):
    block, (a, b) = towers(3, source=source), sequences()
    top_a, top_b = block(a, b)
    block.first, block.second = block.second, block.first
    block.first_norm, block.second_norm = block.second_norm, block.first_norm
    block.first_source, block.second_source = block.second_source, block.first_source
    other_b, other_a = block(b, a)
    assert other_a.equal(top_a) and other_b.equal(top_b)


@pytest.mark.parametrize(
    ("layers", "levels", "moves"), [(1, "all", False), (2, "all", True), (2, "same", True), (2, "lowest", False)]
)
def test_each_level_is_made_of_old_ones(layers: int, levels: str, moves: bool):
    """With one block, A does not see what B's first block makes; with two it does, where it reads that level."""
    block, (a, b) = towers(layers, levels=levels), sequences()
    before = block(a, b)[0]
    with torch.no_grad():
        for parameter in block.second[0].parameters():
            parameter += 0.5
    assert block(a, b)[0].equal(before) is not moves


def test_gradients_reach_the_partners_blocks():
    block, (a, b) = towers(2), sequences()
    (slope,) = torch.autograd.grad(block(a, b)[0].square().sum() + block(a, b)[0].sum(), [block.second[0].norm.weight])
    assert float(slope.abs().max()) > 0


# ---- levels --------------------------------------------------------------------------------------------------------


def test_weights_of_levels_choose_among_them():
    """Infinite on level 0 it is "lowest"; on the level below "same"."""
    method, given = build(layers=3), batch()
    for level, name in ((0, "lowest"), (-1, "same")):
        other = build(layers=3, levels=name)
        for tower, single in zip(method.crossmodal.values(), other.crossmodal.values()):
            for own, its in zip((*tower.first, *tower.second), (*single.first, *single.second)):
                parts = (own.attention.lowest, *own.attention.further)
                its.attention.lowest.load_state_dict(parts[level].state_dict())
                its.norm.load_state_dict(own.norm.state_dict())
                its.feed_forward.load_state_dict(own.feed_forward.state_dict())
                if own.attention.weights is not None:
                    with torch.no_grad():
                        own.attention.weights.fill_(-200.0)[level] = 200.0
        for part in ("inputs", "entrances", "memories", "head"):
            other.get_submodule(part).load_state_dict(method.get_submodule(part).state_dict())
        torch.testing.assert_close(method(given).prediction, other(given).prediction)


def test_every_level_gets_a_weight_that_learns():
    method, given = build(layers=3), batch()
    weights = [block.attention.weights for tower in method.crossmodal.values() for block in tower.first]
    assert [None if w is None else len(w) for w in weights] == [None, 2, 3] * 3
    learnt = [w for w in weights if w is not None]
    assert all(bool((slope != 0).all()) for slope in torch.autograd.grad(method.loss(given).total, learnt))


def test_equal_levels_make_all_choices_of_levels_one():
    """Without the last map of attention and feed-forward every level is the lowest one."""
    found = []
    for levels in LEVELS:
        block, (a, b) = towers(3, levels=levels), sequences()
        for layer in (*block.first, *block.second):
            for name, parameter in layer.named_parameters():
                if ".out." in name or ".second." in name:
                    nn.init.zeros_(parameter)
        found += [torch.cat([top.flatten() for top in block(a, b)])]
    assert all(other.equal(found[0]) for other in found)


def test_the_mean_of_equal_levels_is_one_attention():
    cfg = McmultConfig(**SMALL, combine="mean", projections="shared")
    block = LevelAttention(cfg, 3, 0.0)
    for part in block.further:
        with torch.no_grad():
            part.weight.copy_(block.lowest.weight[8:16])
    query, level = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(query, [level] * 3, Sight()), block.lowest(query, level, level, Sight()))


def test_concatenated_levels_share_one_softmax():
    """Three equal levels with equal maps: thrice the keys, the same mean; and the mask holds for each of them."""
    cfg = McmultConfig(**SMALL, combine="concat")
    block = LevelAttention(cfg, 3, 0.0)
    for part in block.further:
        with torch.no_grad():
            part.weight.copy_(block.lowest.weight[8:]), part.bias.copy_(block.lowest.bias[8:])
    query, level = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    seen = Sight(torch.zeros(1, 1, 4, 5).masked_fill(torch.ones(4, 5).triu(1).bool(), -torch.inf))
    torch.testing.assert_close(block(query, [level] * 3, seen), block.lowest(query, level, level, seen))


def test_a_gate_weighs_channels():
    block = LevelAttention(McmultConfig(**SMALL, combine="gate"), 2, 0.0)
    query, levels = torch.randn(2, 4, 8), [torch.randn(2, 5, 8), torch.randn(2, 5, 8)]
    low, high = (part(query, x, x, Sight()) for part, x in zip((block.lowest, *block.further), levels))
    torch.testing.assert_close(block(query, levels, Sight()), 0.5 * low + 0.5 * high)
    with torch.no_grad():
        block.weights[0], block.weights[1, :3] = -50.0, 50.0
    found = block(query, levels, Sight())
    torch.testing.assert_close(found[..., :3], high[..., :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., 3:], 0.5 * high[..., 3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MCMulT.ablations)
def test_rows_and_padding_in_every_variant(name: str):
    settings = {key.removeprefix("model."): value for key, value in MCMulT.ablations[name].items()}
    method, given = build(layers=2, **settings), batch()
    whole = method(given).prediction
    torch.testing.assert_close(method(given.rows(torch.tensor([2]))).prediction, whole[2:3], rtol=0, atol=1e-5)
    longer = {
        m: Stream(F.pad(s.data, (0, 0, 0, 3), value=9.0), F.pad(s.mask, (0, 3))) for m, s in given.streams.items()
    }
    torch.testing.assert_close(method(replace(given, streams=longer)).prediction, whole, rtol=0, atol=1e-5)


def test_both_sides_of_a_pair_are_targets():
    with pytest.raises(MoodalError, match="targets"):
        McmultConfig(targets=("text",))
