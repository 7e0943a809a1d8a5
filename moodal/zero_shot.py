"""The scores that a language model gave without training, as a run folder like any other, so that tables can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import moodal
from moodal.build import Trained, write_results
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, DataSpec
from moodal.data.corpus import SPLITS, RawCorpus
from moodal.data.store import open_store
from moodal.derive import Derived
from moodal.explain.llm.judge import Judgement, judgements, model_of, sources
from moodal.explain.llm.records import Plan
from moodal.prepare import Prepared, make_split, task_facts
from moodal.train.evaluate import Predictions
from moodal.train.runs import RunFolder

#: The name of the method in config.yaml and tables. There is nothing to train or to open again.
METHOD = "mllm_zero_shot"


def zero_shot_run(store: Path, answers: Path, *, runs: Path | str = "runs", folder: Path | None = None) -> Trained:
    """Write the scores in the file ``answers`` as a run on the corpus in ``store``: predictions, texts, scores.json.

    ``folder``: of the run (default: named by the model and its settings below ``runs``). Scored by the corpus's own
    protocol beside its baseline, as every method is; ``selection`` says how many predictions come from the clip, from the
    transcript alone and from the default. Raises ``DataError`` where the answers hold no scores of this corpus and
    ``MoodalError`` where the folder holds another run.
    """
    raw, plan = open_store(store), model_of(answers)
    found = judgements(raw, answers)
    home = RunFolder(folder or Path(runs) / raw.facts.name / METHOD / plan.name / "seed-0")
    if home.started and folder is not None:
        raise MoodalError(f"{folder} holds a run already; choose another folder.")
    data = _data(raw)
    home.begin(yaml.safe_dump(_config(raw, plan), sort_keys=False), data.description, _environment())
    tables = {name: _table(data, name, made) for name, made in found.items()}
    write_results(
        home,
        tables,
        data,
        {"metric": "none", "better": "last", "value": None, "epoch": 0, "sources": sources(found)},
        0.0,
    )
    return Trained(home.path, home.scores())


def _data(raw: RawCorpus) -> Prepared:
    """The corpus with its labels and texts alone: what scoring needs."""
    task = raw.facts.task
    return Prepared(
        facts=raw.facts,
        spec=DataSpec(streams={}, task=task),
        splits={name: make_split(raw, name, Derived(streams={}), {}) for name in SPLITS},
        clips={name: tuple(raw.clips[row] for row in raw.positions(name)) for name in SPLITS},
        description={
            "corpus": raw.facts.name, "title": raw.facts.title, "language": raw.facts.language, "task": task_facts(task),
            "protocol": raw.facts.protocol, "sizes": {name: len(raw.positions(name)) for name in SPLITS},
            "features": {}, "text": {}, "explainer": {}, "source": dict(raw.source),
        },
    )  # fmt: skip


def _config(raw: RawCorpus, plan: Plan) -> dict[str, Any]:
    asked = {"prompt": plan.prompt, "prompt_sha256": plan.prompt_sha256, **plan.settings}
    return {"corpus": raw.facts.name, "method": METHOD, "seed": 0, "model": {"name": plan.model, **asked}}


def _environment() -> Mapping[str, Any]:
    return {"versions": {"moodal": moodal.__version__}, "parameters": None}


def _table(data: Prepared, name: str, made: Judgement) -> Predictions:
    """The predictions of one split as any method's: of classes as probabilities, all on the class that was named."""
    target = data.splits[name].target
    assert target is not None
    prediction = made.prediction
    if isinstance(data.spec.task, Classification):
        prediction = np.eye(len(data.spec.task.classes))[prediction.astype(np.int64)]
    values = target.value.numpy().astype(np.float64)
    return Predictions(made.ids, prediction, values, target.valid.numpy())
