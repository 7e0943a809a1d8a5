"""Parity with the official TEXT on recorded cases, and the checker itself: it must notice a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moodal.core.batch import Batch, Stream
from moodal.core.errors import DataError, MoodalError
from moodal.interop.official import Converted, convert_text, read_state, text_spec
from moodal.interop.parity import check_file, check_files
from moodal.methods.text import TEXT, TextConfig

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity" / "text"
needs_cases = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the recorded cases (shared/parity/text) are not beside the repository"
)


def copied(case: str, folder: Path) -> Path:
    """A case to be changed: its json in ``folder``, with the tensors beside it."""
    for ending in (".json", ".safetensors"):
        (folder / f"{case}{ending}").write_bytes((FOLDER / f"{case}{ending}").read_bytes())
    return folder / f"{case}.json"


def change(path: Path, name: str, amount: float) -> None:
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors[name] = tensors[name] + torch.tensor(amount).to(tensors[name].dtype)
    save_file(tensors, path.with_suffix(".safetensors"))


@needs_cases
@pytest.mark.parametrize(
    ("case", "name", "amount"),
    [
        ("routed_moe", "output.y", 1e-3),
        ("routed_moe", "output.experts", 1),
        ("routed_moe", "output.grad.x", 1e-3),
        ("sequence_encoder", "state.encoder.layers.0.0.fn.to_k.weight", 0.01),
        ("temporal_alignment", "input.audio", 0.01),
    ],
)
def test_a_changed_case_fails(case: str, name: str, amount: float, tmp_path: Path):
    path = copied(case, tmp_path)
    assert check_file(path).ok
    change(path, name, amount)
    assert not check_file(path).ok


@needs_cases
def test_a_wrong_gradient_norm_fails(tmp_path: Path):
    path = copied("gate_fusion", tmp_path)
    facts = json.loads(path.read_text())
    facts["grad_norm"]["gate.0.weight"] *= 1.001
    path.write_text(json.dumps(facts))
    result = check_file(path)
    assert not result.ok and result.worst.name == "gradient.gate.0.weight"


@needs_cases
def test_weights_may_come_from_another_case(tmp_path: Path):
    copied("gate_fusion", tmp_path)
    path = tmp_path / "again.json"
    facts = json.loads((tmp_path / "gate_fusion.json").read_text()) | {"case": "again", "state_from": "gate_fusion"}
    path.write_text(json.dumps(facts))
    tensors = load_file(tmp_path / "gate_fusion.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("state.")}, tmp_path / "again.safetensors")
    results = check_files([path, path.with_suffix(".safetensors")])  # one case, named twice
    assert [result.case for result in results] == ["again"] and results[0].ok


def test_faulty_files_get_a_sentence(tmp_path: Path):
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match=r"no parity case"):
        check_file(tmp_path / "x.txt")
    with pytest.raises(DataError, match=r"is not there"):
        check_file(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"not valid JSON"):
        check_file(path)
    path.write_text(json.dumps({"method": "texd", "case": "x"}))
    with pytest.raises(MoodalError, match=r"'texd'.*did you mean 'text'"):
        check_file(path)
    path.write_text(json.dumps({"method": "text", "case": "x", "kind": "model"}))
    path.with_suffix(".safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"not a readable safetensors"):
        check_file(path)


@needs_cases
@pytest.mark.parametrize("field", ["config", "tolerance", "kind", "losses"])
def test_an_incomplete_case_gets_a_sentence(field: str, tmp_path: Path):
    path = copied("gate_fusion", tmp_path)
    facts = json.loads(path.read_text())
    del facts[field]
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"gate_fusion\.json is not a complete case of text"):
        check_file(path)


# ---- official checkpoints ----------------------------------------------------------------------------------------


def official_state() -> dict[str, torch.Tensor]:
    tensors = load_file(FOLDER / "mosi_depth1.safetensors")
    return {name.removeprefix("state."): t.float() for name, t in tensors.items() if name.startswith("state.")}


def bert_state() -> dict[str, torch.Tensor]:
    return {
        "bertmodel.model.embeddings.word_embeddings.weight": torch.randn(50, 128),
        "bertmodel.model.embeddings.position_embeddings.weight": torch.randn(64, 128),
        "bertmodel.model.embeddings.token_type_embeddings.weight": torch.randn(2, 128),
        "bertmodel.model.encoder.layer.0.intermediate.dense.weight": torch.randn(256, 128),
        "bertmodel.model.pooler.dense.weight": torch.randn(128, 128),
    }


@needs_cases
def test_a_converted_checkpoint_gives_the_official_scores():
    found: Converted = convert_text(official_state())
    assert found.widths == {"text": 768, "audio": 5, "vision": 20} and found.encoder is None
    assert found.settings["layers"] == 1 and found.settings["max_steps"] == 50 and found.settings["reference"]
    method = TEXT(TextConfig(**found.settings), text_spec(found.widths)).eval()
    method.load_state_dict(found.state)
    case = load_file(FOLDER / "mosi_depth1.safetensors")
    streams = {
        n: Stream(case[f"input.{n}"].float(), torch.ones(5, 50, dtype=torch.bool)) for n in ("text", "audio", "vision")
    }
    told = {r: Stream(case[f"input.{r}_explanation"].float(), streams["text"].mask) for r in ("audio", "vision")}
    batch = Batch(ids=tuple("abcde"), index=torch.arange(5), streams=streams, explanations=told)
    torch.testing.assert_close(method(batch).prediction, case["output.score"][:, 0], rtol=0, atol=1e-5)


@needs_cases
def test_the_text_encoder_inside_a_checkpoint_is_carried_over(tmp_path: Path):
    state = {f"module.{name}": tensor for name, tensor in {**official_state(), **bert_state()}.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pth")
    found = convert_text(read_state(tmp_path / "epoch_3.pth"))
    assert found.encoder == {
        "vocab_size": 50,
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }
    carried = {name for name in found.state if name.startswith("encoder.")}
    assert "encoder.model.embeddings.word_embeddings.weight" in carried and not any(
        "pooler" in name for name in carried
    )


@needs_cases
def test_checkpoints_of_something_else_are_refused(tmp_path: Path):
    state = official_state()
    missing = {name: tensor for name, tensor in state.items() if name != "cls_head.gate.0.bias"}
    with pytest.raises(MoodalError, match=r"has no parameter 'cls_head\.gate\.0\.bias'"):
        convert_text(missing)
    with pytest.raises(MoodalError, match=r"parameter 'extra\.weight' is not known"):
        convert_text(state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(MoodalError, match=r"'proj_a_clue0\.weight' has shape \(128, 7\)"):
        convert_text(state | {"proj_a_clue0.weight": torch.zeros(128, 7)})
    with pytest.raises(MoodalError, match="is not of TEXT"):
        convert_text({"a": torch.zeros(1)})
    (tmp_path / "bad.pth").write_bytes(b"rubbish")
    with pytest.raises(MoodalError, match=r"bad\.pth is not a checkpoint"):
        read_state(tmp_path / "bad.pth")
