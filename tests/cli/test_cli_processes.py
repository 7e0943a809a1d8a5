"""The command line as real processes: interrupted, killed at any moment, and on two processes at once."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

EPOCHS = 4


@pytest.fixture(scope="module")
def train(commands, tiny_text_settings, tmp_path_factory):
    """Start training in a folder of runs of its own; gives the running command and that folder."""

    def start(*settings: str):
        runs = tmp_path_factory.mktemp("runs")
        argv = [
            "train",
            "synthetic/text",
            *tiny_text_settings,
            f"train.epochs={EPOCHS}",
            "device.threads=1",
            *settings,
            "--runs",
            str(runs),
        ]
        return commands.start(*argv, "--json"), runs

    return start


def only_run(runs: Path) -> Path:
    (found,) = runs.glob("*/*/*/seed-*")
    return found


@pytest.fixture(scope="module")
def whole(train):
    """An uninterrupted run."""
    job, runs = train()
    done = job.wait()
    assert done.code == 0, done.err
    return only_run(runs)


def assert_same_run(found: Path, wanted: Path) -> None:
    assert (found / "predictions.csv").read_bytes() == (wanted / "predictions.csv").read_bytes()
    for name in ("best-train.pt", "last.pt"):
        one, other = (torch.load(run / name, weights_only=True)["method"] for run in (found, wanted))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert without_seconds(found) == without_seconds(wanted)
    scores = [json.loads((run / "scores.json").read_text()) for run in (found, wanted)]
    assert scores[0]["test"] == scores[1]["test"] and scores[0]["selection"] == scores[1]["selection"]


def without_seconds(run: Path) -> list[str]:
    """history.csv without its third column."""
    return [
        ",".join(line.split(",")[:2] + line.split(",")[3:]) for line in (run / "history.csv").read_text().splitlines()
    ]


def wait_for(condition, job, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.error()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def resume(commands, run: Path):
    done = commands.run("train", "--resume", str(run), "--json")
    assert done.code == 0, done.err
    return done


def test_interrupted_it_saves_says_how_to_go_on_and_does(train, commands, whole):
    job, runs = train()
    wait_for(lambda: list(runs.glob("*/*/*/seed-1/last.pt")), job)
    job.signal(signal.SIGINT)
    done = job.wait()
    run = only_run(runs)
    assert done.code == 130, done.err
    told = re.search(r"stopped and saved\. Go on with: moodal (.+)", done.err)
    assert told and shlex.split(told[1]) == ["train", "--resume", str(run)]
    assert "Traceback" not in done.err
    assert not (run / "scores.json").exists()
    saved = torch.load(run / "last.pt", weights_only=True)["state"]
    assert (saved["epoch"], saved["step"]) < (EPOCHS, 0)
    result = resume(commands, run)
    assert set(result.json["test"]["seeds"]) == {"1"}
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    "moment",
    ["before the first save", "during the first epochs", "when the best is saved", "with a save at every step"],
)
def test_killed_it_goes_on_to_the_same_bits(moment, train, commands, whole):
    job, runs = train(*(["train.save_every=1"] if "every" in moment else []))
    sought = {"before": "config.yaml", "during": "last.pt", "when": "best-train.pt", "with": "last.pt"}[
        moment.split()[0]
    ]
    wait_for(lambda: list(runs.glob(f"*/*/*/seed-1/{sought}")), job)
    time.sleep(0.03 if "every" in moment else 0.0)
    job.signal(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    run = only_run(runs)
    assert not (run / "scores.json").exists()
    resume(commands, run)
    assert_same_run(run, whole)


def test_killed_again_and_again_it_still_ends_with_the_same_bits(train, commands, whole):
    """Killed after a fifth of a second, six times, wherever it then is: starting, training, saving, scoring."""
    job, runs = train("train.save_every=1")
    wait_for(lambda: list(runs.glob("*/*/*/seed-1/config.yaml")), job)
    run = only_run(runs)
    for turn in range(6):
        time.sleep(0.05 * (turn + 1))
        if job.poll() is None:
            job.signal(signal.SIGKILL)
            job.wait()
        job = commands.start("train", "--resume", str(run))
    done = job.wait()
    assert done.code == 0, done.err
    assert_same_run(run, whole)


def test_the_same_command_goes_on_with_a_stopped_run(commands, tiny_text_settings, tmp_path, whole):
    argv = [
        "train",
        "synthetic/text",
        *tiny_text_settings,
        f"train.epochs={EPOCHS}",
        "device.threads=1",
        "--runs",
        str(tmp_path),
    ]
    job = commands.start(*argv)
    wait_for(lambda: list(tmp_path.glob("*/*/*/seed-1/last.pt")), job)
    job.signal(signal.SIGKILL)
    job.wait()
    assert commands.run(*argv).code == 0
    assert_same_run(only_run(tmp_path), whole)


def test_two_processes_give_the_scores_of_one(train, tiny_text_settings, tmp_path):
    """``moodal train ... device.devices=2 device.strategy=ddp`` as it is typed, once."""
    still = ["model.noise=false", "model.head_dropout=0", "train.epochs=2", "device.threads=1"]
    argv = [
        "train",
        "synthetic/text",
        *tiny_text_settings,
        *still,
        "device.devices=2",
        "device.strategy=ddp",
        "--runs",
        str(tmp_path),
        "--json",
    ]
    root = Path(__file__).resolve().parents[2]
    two = subprocess.Popen(
        [sys.executable, "-m", "moodal", *argv], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    job, _ = train(*still)
    one = job.wait()
    assert one.code == 0, one.err
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    found = json.loads(out.strip().splitlines()[-1])
    assert out.count('"selection"') == 1, "only the first process prints"
    for split in ("valid", "test"):
        for key, value in one.json[split]["mean"].items():
            assert found[split]["mean"][key] == pytest.approx(value, abs=1e-5), f"{split} {key}"


def test_a_fault_ends_the_process_with_code_2(commands):
    done = commands.run("train", "synthetic/text", "train.epoch=5")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: command line: train.epoch: no such setting; did you mean 'train.epochs'?\n"
