"""The page that goes with a saved model: what it is, what it was trained on, how well it does, how to use it, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moodal.core.settings import RunConfig
from moodal.data import CORPORA
from moodal.methods import METHODS

_LIMITS = (
    "It tells what a clip expresses to the people who labelled its corpus, not what somebody feels.",
    "The scores hold for the test split of that corpus. Other speakers, languages, microphones, cameras and topics were "
    "not measured; expect less.",
    "A modality that a clip lacks is left out of the prediction; the scores above are for clips as the corpus has them.",
    "It is made for research, and not for decisions about people: hiring, policing, teaching, insurance, health.",
)


def model_card(cfg: RunConfig, data: Mapping[str, Any], scores: Mapping[str, Any], *, encoder: str | None) -> str:
    """README.md of a saved model, Markdown with the hub's front matter. ``encoder``: what became of a fine-tuned text
    encoder ("with the weights", "left out"); None for a frozen one or none."""
    method, corpus = METHODS[cfg.method], CORPORA[cfg.corpus].facts
    parts = [
        _front_matter(cfg, data),
        f"# {method.title}\n\nTrained on {data['title']} with moodal. {_task(data['task'])}",
        "## What it reads\n\n" + "\n".join(f"- {line}" for line in reads(data)) + _encoder_words(data, encoder),
        _use(cfg),
        "## Scores\n\n" + _scores(scores),
        f"## Data and licence\n\nTrained on {data['title']} ({data['language']}; {_sizes(data)}).\n"
        f"Licence of the corpus: {corpus.licence}. What the licence of the corpus asks holds for this model too.",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _LIMITS),
        f"## Cite\n\n- Method: {method.paper}\n- Corpus: {corpus.source}",
    ]
    return "\n\n".join(parts) + "\n"


def reads(data: Mapping[str, Any]) -> list[str]:
    """One line for each input of a run: how its features are made."""
    lines, text = [], data["text"]
    for name in data["reads"]["streams"]:
        if name != "text":
            feature = data["features"][name]
            lines.append(f"{name}: {feature['name']} version {feature['version']}, {feature['width']} numbers a step")
        elif "features" in text:
            lines.append(f"text: {text['features']['name']}, features that came with the corpus")
        else:
            how = "frozen" if text["mode"] == "frozen" else "fine-tuned"
            lines.append(f"text: {text['encoder']}, {how}, at most {text['max_tokens']} tokens")
    told, by = data["reads"]["explanations"], data.get("explainer", {})
    return [*lines, *(f"explanation of {role}: {by.get(role, 'stored with the corpus')}" for role in told)]


def _front_matter(cfg: RunConfig, data: Mapping[str, Any]) -> str:
    kind = "sentiment-analysis" if data["task"]["kind"] == "regression" else "emotion-recognition"
    tags = ["moodal", "multimodal", kind, cfg.method, cfg.corpus]
    listed = "\n".join(f"- {tag}" for tag in tags)
    return f"---\nlibrary_name: moodal\nlicense: other\nlanguage: {data['language']}\ntags:\n{listed}\n---"


def _task(task: Mapping[str, Any]) -> str:
    if task["kind"] == "regression":
        return f"It gives a clip a number from {task['low']:g} to {task['high']:g}."
    return f"It gives each of {len(task['classes'])} classes a probability: {', '.join(task['classes'])}."


def _encoder_words(data: Mapping[str, Any], encoder: str | None) -> str:
    text = data["text"]
    if encoder is not None:
        return f"\n\nThe fine-tuned text encoder is {encoder if encoder == 'left out' else 'part of the weights'}."
    if "encoder" not in text:
        return ""
    return (
        f"\n\nThe text encoder {text['encoder']} ({text['revision']}) is not part of the weights; it is found by name."
    )


def _use(cfg: RunConfig) -> str:
    extras = "text,audio,media,face"
    code = (
        "from moodal.predictor import Predictor\n\n"
        'predictor = Predictor.from_pretrained("this folder, or owner/name on the hub")\n'
        'print(predictor.clip("clip.mp4").as_json())'
    )
    command = "moodal predict clip.mp4 --run FOLDER"
    return (
        f"## Use\n\n```sh\npip install 'moodal[{extras}]'\n{command}\n```\n\n```python\n{code}\n```\n\n"
        f"Made by the recipe `{cfg.corpus}/{cfg.method}`, seed {cfg.seed}; all settings are in `config.json`."
    )


def _sizes(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} clips in {name}" for name, count in data["sizes"].items())


def _scores(scores: Mapping[str, Any]) -> str:
    """The table of the test split beside the baseline."""
    test = scores.get("test", {})
    if not test:
        return "Training did not finish, so there are none."
    baseline = scores.get("baseline", {})
    known = baseline.get("test", {})
    rows = [f"| {name} | {_number(value)} | {_number(known.get(name))} |" for name, value in test.items()]
    selection = scores.get("selection", {})
    chosen = f"The epoch was chosen by {selection.get('metric')} on the validation split" if selection else ""
    said = f"\n\n{chosen}; the test split was scored once." if chosen else ""
    head = f"| {scores.get('protocol', '')} protocol, test split | this model | {baseline.get('name', 'baseline')} |"
    return "\n".join([head, "|---|---|---|", *rows]) + said


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""
