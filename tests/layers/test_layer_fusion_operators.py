"""Fusion operators: what they compute, with one to three modalities, with and without all of them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from moodal.layers.fusion_operators import GraphFusion, LowRank, Operator, TensorProduct, fusion_operator

NAMES = get_args(Operator)
WIDTH = 4


def made(name: Operator, inputs: int = 3):
    torch.manual_seed(0)
    return fusion_operator(name, WIDTH, inputs).eval()


def vectors(inputs: int = 3, rows: int = 5) -> Tensor:
    return torch.randn(rows, inputs, WIDTH, generator=torch.Generator().manual_seed(1))


def products(given: Tensor) -> Tensor:
    """(N, 5, 5, 5) products of one entry of each [1; x], in the order text, audio, vision."""
    extended = torch.cat([torch.ones(len(given), 3, 1), given], dim=2)
    return torch.einsum("nt,na,nv->ntav", *extended.unbind(dim=1))


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_operator_takes_one_to_three_modalities_and_all_its_parameters_learn(name, inputs):
    block, given = made(name, inputs), vectors(inputs).requires_grad_()
    fused = block(given)
    assert fused.shape == (5, WIDTH) and bool(torch.isfinite(fused).all())
    gradients = torch.autograd.grad(fused.square().sum(), [given, *block.parameters()])
    if name != "concatenation":  # whose ReLU may be shut
        assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_what_an_absent_modality_would_have_said_does_not_matter(name):
    block, given, present = made(name), vectors(), torch.tensor([True, True, False]).expand(5, 3)
    other = given.clone()
    other[:, 2] = torch.randn(5, WIDTH)
    torch.testing.assert_close(block(given, present), block(other, present))
    assert not torch.allclose(block(given, present), block(given))


@pytest.mark.parametrize("name", ["addition", "multiplication"])
def test_an_absent_modality_adds_and_multiplies_nothing(name):
    given, present = vectors(), torch.tensor([True, False, True]).expand(5, 3)
    torch.testing.assert_close(made(name)(given, present), made(name, 2)(given[:, [0, 2]]))


def test_addition_and_multiplication_are_just_that():
    text, audio, vision = vectors().unbind(dim=1)
    torch.testing.assert_close(made("addition")(vectors()), text + audio + vision)
    torch.testing.assert_close(made("multiplication")(vectors()), text * audio * vision)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_tensor_reads_every_product_of_entries(activation):
    torch.manual_seed(0)
    block = TensorProduct(WIDTH, 3, activation=activation).eval()
    # The rows of the official weights run over audio, vision, text, the last one fastest.
    values = block.first(products(vectors()).permute(0, 2, 3, 1).flatten(1))
    if activation == "tanh":
        wanted = block.third(block.second(values.tanh()).tanh()).tanh()
    else:
        wanted = block.third(block.second(values).tanh()).relu()
    torch.testing.assert_close(block(vectors()), wanted)


def test_half_of_the_products_are_dropped_in_training_only():
    block = made("tensor").train()
    assert not torch.equal(block(vectors()), block(vectors()))
    assert torch.equal(block.eval()(vectors()), block(vectors()))


def test_low_rank_is_a_linear_map_of_the_products_whose_weights_have_that_rank():
    block = LowRank(WIDTH, 3, out=6, rank=2)
    weights = torch.einsum("r,rtd,rad,rvd->tavd", block.weights[0], *block.factors.unbind(dim=0))
    wanted = torch.einsum("ntav,tavd->nd", products(vectors()), weights) + block.bias
    torch.testing.assert_close(block(vectors()), wanted)


def test_in_the_graph_equal_modalities_make_pairs_of_a_third_each():
    block = made("graph")
    given = vectors(1).expand(-1, 3, -1)
    one = given[:, 0]
    raw = block.pair.second(torch.nn.functional.leaky_relu(block.pair.first(torch.cat([one, one], 1)), 0.2)).tanh()
    single = (block.attention(one).tanh() * one, 3 * (raw / 3).tanh())
    seen = []
    block.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(given)
    torch.testing.assert_close(seen[0][:, : 2 * WIDTH], torch.cat(single, dim=1))


def test_the_graph_has_only_the_levels_that_the_modalities_make():
    assert made("graph", 1).pair is None
    assert made("graph", 2).triple is None
    assert isinstance(made("graph"), GraphFusion) and made("graph").triple is not None
