"""An official checkpoint becomes a run that gives the official outputs, through the commands a user types."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moodal.cli import main
from moodal.core.batch import Batch, Stream
from moodal.interop.official import convert_text, text_spec
from moodal.methods.text import TEXT, TextConfig

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "parity" / "text" / "mosi_depth1.safetensors"
STEPS, ROLES = 50, {"text": "text_bert", "audio": "audio_clue_bert", "vision": "visual_clue_bert"}


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> dict:
    """A checkpoint in the official form: the fixture's weights and a small BERT; a pickle in the field's format."""
    if not FIXTURE.exists():
        pytest.skip(f"{FIXTURE.name} is not beside this checkout")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}
    bert = transformers.BertModel(
        transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=STEPS)
    ).eval()
    state = {name[6:]: value.float() for name, value in load_file(FIXTURE).items() if name.startswith("state.")}
    words = {f"bertmodel.model.{name}": value for name, value in bert.state_dict().items()}
    folder = tmp_path_factory.mktemp("official")
    torch.save({"epoch": 7, "state_dict": {**state, **words}, "optimizer": {}}, folder / "epoch_7.pth")
    draw = np.random.default_rng(0)
    data = {split: _split(draw, split, rows) for split, rows in (("train", 3), ("valid", 3), ("test", 6))}
    (folder / "mosi.pkl").write_bytes(pickle.dumps(data))
    return {"folder": folder, "bert": bert, "state": state, "test": data["test"]}


def _split(draw: np.random.Generator, split: str, rows: int) -> dict:
    def triple() -> np.ndarray:
        found = np.zeros((rows, 3, STEPS), np.float32)
        for row, length in enumerate(draw.integers(4, STEPS + 1, rows)):
            found[row, 0, :length], found[row, 1, :length] = draw.integers(1, 60, length), 1
        return found

    return {
        "id": [f"{split}{row}$_$0" for row in range(rows)],
        "raw_text": ["words"] * rows,
        "audio": draw.standard_normal((rows, STEPS, 5)).astype(np.float32),
        "vision": draw.standard_normal((rows, STEPS, 20)).astype(np.float32),
        "regression_labels": np.linspace(-2, 2, rows).round(1).astype(np.float32),
        **{column: triple() for column in ROLES.values()},
    }


def test_it_gives_the_official_outputs(official, capsys):
    folder, test = official["folder"], official["test"]
    run, store, out = folder / "run", folder / "store", folder / "predictions.csv"
    assert main(["import", str(folder / "mosi.pkl"), "--corpus", "mosi", "--out", str(store)]) == 0
    assert main(["import-checkpoint", "text", str(folder / "epoch_7.pth"), "--out", str(run)]) == 0
    assert main(["evaluate", str(run), f"data.root={store}", "--split", "test", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test"]["mae"] > 0
    ours = [float(row["prediction"]) for row in csv.DictReader(out.open())]
    np.testing.assert_allclose(ours, _published(official, test), atol=1e-5)


def _published(official: dict, test: dict) -> list[float]:
    """Hidden states of the BERT by itself, then the part that the parity fixtures cover."""
    converted = convert_text(official["state"])
    method = TEXT(TextConfig(**converted.settings), text_spec(converted.widths)).eval()
    method.load_state_dict(converted.state)
    rows, real = len(test["id"]), torch.ones(len(test["id"]), STEPS, dtype=torch.bool)
    states = {}
    with torch.no_grad():
        for name, column in ROLES.items():
            ids, mask = torch.tensor(test[column][:, 0]).long(), torch.tensor(test[column][:, 1])
            hidden = official["bert"](input_ids=ids, attention_mask=mask).last_hidden_state
            states[name] = Stream(hidden, real)
        features = {name: Stream(torch.tensor(test[name]), real) for name in ("audio", "vision")}
        batch = Batch(
            ids=tuple(test["id"]),
            index=torch.arange(rows),
            streams={"text": states.pop("text"), **features},
            explanations=states,
        )
        return method(batch).prediction.tolist()


def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path, capsys):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"state_dict": Hostile()}, tmp_path / "bad.pth")
    assert main(["import-checkpoint", "text", str(tmp_path / "bad.pth"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "Traceback" not in error
    assert not marker.exists() and not (tmp_path / "run").exists()
