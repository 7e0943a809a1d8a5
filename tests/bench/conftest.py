"""Run folders written by hand, in the format of the run-folder contract."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from moodal.metrics.protocol import score

CLASSES = ["neutral", "joy <b>", "cost $x$"]
HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=http://evil.example/x.png>"


def _jsonable(scores):
    return {key: None if value != value else value for key, value in scores.items()}


class RunMaker:
    """Writes runs below one folder."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(
        self,
        *,
        task: str = "regression",
        seed: int = 1,
        noise: float = 0.6,
        corpus: str | None = None,
        config: dict | None = None,
        inspection: bool = True,
        texts: bool = True,
        unlabelled: int = 3,
        baseline: bool = True,
        sizes: dict | None = None,
        constant: bool = False,
        name: str = "0a1b",
        stages: tuple = ("train",),
        groups: bool = False,
    ) -> Path:
        """One finished run; returns its folder."""
        corpus = corpus or ("mosi" if task == "regression" else "ravdess")
        folder = self.root / corpus / "text" / name / f"seed-{seed}"
        folder.mkdir(parents=True)
        random, labels = np.random.default_rng(seed), np.random.default_rng(7)
        sizes = sizes or {"valid": 40, "test": 60}
        rows, tensors, lines, scores = [], {}, [], {}
        for split, size in sizes.items():
            ids = [f"{split}_{place}" for place in range(size)]
            if task == "regression":
                truth = np.round(labels.uniform(-3, 3, size) * 5) / 5
                truth[0] = 0.0
                guess = np.zeros(size) if constant else np.clip(truth + random.normal(0, noise, size), -3, 3)
                table = [[repr(float(t)), repr(float(p))] for t, p in zip(truth, guess)]
            else:
                truth = labels.integers(0, len(CLASSES), size)
                logits = random.normal(0, 1, (size, len(CLASSES))) + 2 * (1 - noise) * np.eye(len(CLASSES))[truth]
                shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                guess = shares.argmax(axis=1)
                table = [[CLASSES[t], CLASSES[p], *map(repr, map(float, s))] for t, p, s in zip(truth, guess, shares)]
            hidden = set(range(size - unlabelled, size)) if split == "test" else set()
            for place, cells in enumerate(table):
                rows.append([split, ids[place], "" if place in hidden else cells[0], *cells[1:]])
            kept = size - len(hidden)
            scores[split] = _jsonable(score("mosi" if task == "regression" else "emotion", guess[:kept], truth[:kept]))
            gates = random.dirichlet([3, 2, 1], size).astype(np.float32)
            weights = random.dirichlet(np.ones(5), (size, 2)).astype(np.float32)
            weights[weights < 0.1] = 0
            tensors |= {f"{split}.gates": gates, f"{split}.routing": weights / weights.sum(axis=2, keepdims=True)}
            for place, clip in enumerate(ids):
                lines.append(
                    {
                        "split": split,
                        "id": clip,
                        "text": f"words of {clip} {HOSTILE}",
                        "explanations": {
                            "audio": f"the voice of {clip} rises",
                            "vision": "brows lowered <i>",
                            "comment": "positive",
                        },
                        "explained_by": {"audio": "measured-1"},
                    }
                    | ({"group": f"video{place // 3}"} if groups else {})
                )
        epochs = [(stage, epoch) for stage in stages for epoch in range(1, 7)]
        metric, better = ("mae", "lower") if task == "regression" else ("weighted_f1", "higher")
        history = [
            [s, e, 1.5, 2.0 / (n + 1), 1.5 / (n + 1), 0.5 / (n + 1), scores["valid"][metric] or 0.5, 1e-3, int(n < 4)]
            for n, (s, e) in enumerate(epochs)
        ]
        columns = ["stage", "epoch", "seconds", "loss", "task", "balance", f"valid_{metric}", "rate", "best"]
        settings = {
            "corpus": corpus,
            "method": "text",
            "seed": seed,
            "model": {"width": 128, "modalities": ["text", "audio", "vision"], "explanations": True},
            "device": {"accelerator": "cpu", "precision": "32-true"},
        } | (config or {})
        data = {
            "corpus": corpus,
            "task": {"kind": "regression", "low": -3.0, "high": 3.0}
            if task == "regression"
            else {"kind": "classification", "classes": CLASSES},
            "protocol": "mosi" if task == "regression" else "emotion",
            "language": "en",
            "sizes": {"train": 100, **sizes},
            "features": {
                "audio": {"name": "librosa", "version": "1", "width": 33},
                "vision": {"name": "au", "version": "2", "width": 17},
            },
            "text": {"mode": "finetune", "encoder": "minilm", "revision": "0.1.0", "max_tokens": 50},
            "explainer": {"audio": "measured-1", "vision": "measured-1", "comment": "lexicon-1"},
            "source": {"labels.csv": "sha256:abc"},
        }
        result = {
            "protocol": data["protocol"],
            "selection": {
                "metric": metric,
                "better": better,
                "value": scores["valid"][metric],
                "stage": stages[-1],
                "epoch": 4,
            },
            **scores,
        }
        if baseline:
            zero = 0.1 if task == "regression" else CLASSES[0]
            result["baseline"] = {"name": "mean of the training labels", "prediction": zero}
        environment = {
            "versions": {"torch": "2.13.0"},
            "device": "cpu",
            "commit": "abc123",
            "clean": False,
            "started": "2026-07-01T10:00:00",
            "seconds": 12.5,
            "parameters": 3950000,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "data.json").write_text(json.dumps(data))
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "scores.json").write_text(json.dumps(result))
        shares = [f"p_{name}" for name in CLASSES] if task == "classification" else []
        _csv(folder / "history.csv", columns, history)
        _csv(folder / "predictions.csv", ["split", "id", "target", "prediction", *shares], rows)
        if inspection:
            save_file(tensors, folder / "inspection.safetensors")
        if texts:
            (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return folder


def _csv(path: Path, columns: list, rows: list) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two seeds and a weaker configuration, and their report: made once, because drawing takes seconds."""
    from moodal.bench.report import report_run

    root = tmp_path_factory.mktemp("reported")
    make = RunMaker(root / "runs")
    folders = [
        make(seed=1),
        make(seed=2),
        make(
            seed=1,
            noise=1.5,
            name="ffff",
            config={"model": {"width": 128, "modalities": ["text"], "explanations": False}},
        ),
    ]
    out = report_run(folders, root / "out", planned=3, resamples=50)
    return {"folders": folders, "out": out, "html": out.read_text()}
