"""Folders of save_pretrained: the same predictions bit for bit, self-contained, and a sentence for whatever is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from moodal.core.errors import MoodalError
from moodal.core.files import sha256, write_json
from moodal.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")


def told(predictor: Predictor, trained) -> list[dict]:
    """All that is predicted of the test clips, without times."""
    return [{**found.as_json(), "spent": None} for found in predictor.predict(trained.clips)]


@pytest.fixture(scope="module")
def saved(frozen, tmp_path_factory) -> Path:
    return frozen.predictor.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A saved model to do damage to."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["frozen", "finetuned", "classes"])
def test_a_saved_model_predicts_the_same_bits(name, request, tmp_path):
    trained = request.getfixturevalue(name)
    first = trained.predictor.save_pretrained(tmp_path / "first")
    again = Predictor.open(first)
    assert told(again, trained) == told(trained.predictor, trained)
    assert again.facts == {**trained.predictor.facts, "source": str(first)}
    second = again.save_pretrained(tmp_path / "second")
    assert [path.name for path in sorted(second.rglob("*"))] == [path.name for path in sorted(first.rglob("*"))]
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert told(Predictor.from_pretrained(second), trained) == told(trained.predictor, trained)


def test_what_a_saved_model_holds(saved, frozen):
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    weights = load_file(saved / "model.safetensors")
    expected = torch.load(frozen.folder / "best-train.pt", weights_only=True)["method"]
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    config = json.loads((saved / "config.json").read_text())
    assert config["settings"]["method"] == "text" and config["settings"]["data"]["root"] is None
    assert config["data"] == json.loads((frozen.folder / "data.json").read_text())


def test_a_fine_tuned_encoder_is_part_of_it_with_its_vocabulary(finetuned, tmp_path):
    """Nothing but the folder is needed: the encoder it was trained from may be gone."""
    folder = finetuned.predictor.save_pretrained(tmp_path / "model")
    assert any(name.startswith("encoder.") for name in load_file(folder / "model.safetensors"))
    hidden = finetuned.encoder.with_name("hidden")
    finetuned.encoder.rename(hidden)
    try:
        found = told(Predictor.open(folder), finetuned)
        with pytest.raises(MoodalError, match=r"text encoder .* does not exist"):
            Predictor.open(finetuned.folder)
    finally:
        hidden.rename(finetuned.encoder)
    assert found == told(finetuned.predictor, finetuned)


def test_a_fine_tuned_encoder_can_be_left_out(finetuned, tmp_path):
    folder = finetuned.predictor.save_pretrained(tmp_path / "model", encoder=False)
    assert not any(name.startswith("encoder.") for name in load_file(folder / "model.safetensors"))
    assert "left out" in (folder / "README.md").read_text()
    predictor = Predictor.open(folder)
    found, expected = predictor.predict(finetuned.clips), finetuned.predictor.predict(finetuned.clips)
    assert all("was left out when this model was saved" in " ".join(one.notes) for one in found)
    assert any(one.value != other.value for one, other in zip(found, expected))
    inside = predictor.run.method.state_dict(), finetuned.predictor.run.method.state_dict()
    assert all(torch.equal(inside[0][name], inside[1][name]) for name in inside[1] if not name.startswith("encoder."))


def test_the_card_says_what_it_is_and_what_it_scored(saved, frozen):
    card = (saved / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "moodal" and {"text", "synthetic"} <= set(head["tags"])
    scores = json.loads((frozen.folder / "scores.json").read_text())
    for name, value in scores["test"].items():
        assert f"| {name} | {value:.4f} |" in card
    for part in ("AAAI 2026", "## Limits", "none needed", "41 clips in train", "moodal predict", "from_pretrained"):
        assert part in card
    assert "from -3 to 3" in card and str(frozen.folder) not in card


def test_a_folder_in_use_is_left_alone(saved, frozen, tmp_path):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(MoodalError, match="is in use already"):
        frozen.predictor.save_pretrained(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert Predictor.open(frozen.predictor.save_pretrained(tmp_path / "empty")).modalities
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change(folder: Path, *path: str, value=None) -> None:
    """Set, or with None remove, the entry at ``path`` of config.json."""
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    write_json(folder / "config.json", config)


def refit(folder: Path) -> None:
    """Weights of another shape, with the right checksum."""
    change(folder, "settings", "model", "width", value=10)


def foreign_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    change(folder, "weights", "sha256", value=sha256(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "its SHA-256 differs"),
        (flip, "its SHA-256 differs"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (foreign_weights, "is no readable safetensors file"),
        (refit, "model.safetensors does not fit its config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "was not written by moodal"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "was not written by moodal"),
        (lambda folder: (folder / "config.json").unlink(), "is neither a run folder .* nor a saved model"),
        (lambda folder: change(folder, "moodal_format", value=2), "has format 2, and this version of moodal reads 1"),
        (lambda folder: change(folder, "scores"), "config.json lacks scores"),
        (lambda folder: change(folder, "settings", "method", value="txt"), "There is no method 'txt'"),
        (lambda folder: change(folder, "settings", "model", "widht", value=3), "did you mean 'model.width'"),
        (lambda folder: change(folder, "data", "reads"), "does not say what it reads; train it again"),
        (lambda folder: change(folder, "data", "task"), r"does not say what its data were \(no task\)"),
        (lambda folder: change(folder, "data", "measured", "name", value="measured-0"), "explained by measured-0"),
        (
            lambda folder: change(folder, "data", "task", value={"kind": "identification", "identities": 4}),
            "tells people apart by pictures",
        ),
        (
            lambda folder: change(folder, "data", "text", "revision", value="sha256:0"),
            "was trained with the text encoder .* here is another",
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(copy, damage, said):
    damage(copy)
    with pytest.raises(MoodalError, match=said) as fault:
        Predictor.open(copy)
    assert "\n" not in str(fault.value)


def test_a_fine_tuned_model_without_its_vocabulary_is_refused(finetuned, tmp_path):
    folder = finetuned.predictor.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(MoodalError, match="tokenizer is missing"):
        Predictor.open(folder)


def test_runs_that_cannot_be_opened(frozen, tmp_path):
    run = Path(shutil.copytree(frozen.folder, tmp_path / "runs" / "corpus" / "seed-1"))
    with pytest.raises(MoodalError, match=r"did you mean .*seed-1"):
        Predictor.open(tmp_path / "runs")
    data = json.loads((run / "data.json").read_text())
    write_json(run / "data.json", {key: value for key, value in data.items() if key != "reads"})
    with pytest.raises(MoodalError, match="does not say what it reads; train it again"):
        Predictor.open(run)
    transforms = {**data["transforms"], "audio": {**data["transforms"]["audio"], "width": 5}}
    write_json(run / "data.json", {**data, "transforms": transforms})
    with pytest.raises(MoodalError, match=r"does not fit|trained on 5 channels"):
        Predictor.open(run)
    write_json(run / "data.json", data)
    for file in run.glob("*.pt"):
        file.unlink()
    with pytest.raises(MoodalError, match=r"last\.pt does not exist"):
        Predictor.open(run)


def test_an_unfinished_run_says_so(frozen, tmp_path):
    run = Path(shutil.copytree(frozen.folder, tmp_path / "run"))
    (run / "scores.json").unlink()
    predictor = Predictor.open(run)
    assert predictor.facts["scores"] == {} and "not trained to its end" in predictor.facts["notes"][0]
    assert predictor.predict(frozen.clips[:1])[0].value == frozen.predictor.predict(frozen.clips[:1])[0].value
    assert "so there are none" in (predictor.save_pretrained(tmp_path / "model") / "README.md").read_text()


def test_names_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoodalError, match="no/such/folder is no folder; give a run folder"):
        Predictor.open("no/such/folder")
    with pytest.raises(MoodalError, match="There is no folder somebody/nothing, and the hub did not give"):
        Predictor.open("somebody/nothing")
    monkeypatch.setattr("moodal.pretrained.SHIPPED_FOLDER", "nothing_here")
    with pytest.raises(MoodalError, match="This installation carries no pretrained run"):
        Predictor.open()


def test_the_shipped_run_and_a_repository_in_the_hub_cache_are_opened(saved, frozen, tmp_path, monkeypatch):
    monkeypatch.setattr("moodal.pretrained.SHIPPED_FOLDER", str(saved))  # an absolute path stands for itself
    assert told(Predictor.open(), frozen) == told(frozen.predictor, frozen)
    home, commit = tmp_path / "hub" / "models--somebody--moods", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    predictor = Predictor.open("somebody/moods")
    assert told(predictor, frozen) == told(frozen.predictor, frozen) and predictor.facts["source"] == "somebody/moods"
