"""Time and memory of a training step of MulT at the unaligned MOSEI sizes, beside the published computation.

    python benchmarks/mult_step.py --threads 2
    python benchmarks/mult_step.py --threads 2 --heads 10 --rounds 5 --json

A step is forward, backward, clipping and Adam on 16 clips of 50, 500 and 375 steps (300, 74 and 35 wide), width 40, depth 4.
"published" is written out in this file: positions, LayerNorms, then attention as matrix product, mask, softmax, dropout
on all weights, matrix product, with no fused kernel, on the same parameters. The two take turns in one process, so that
a busy machine slows both, and ratios are medians over the turns. Without dropout their predictions and the norms of their
gradients are compared first. Memory is the growth of the highest resident size that the operating system saw, from just
before the first step to after the second, in a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.crossmodal import CrossmodalEncoder, CrossmodalLayer, PackedAttention
from moodal.layers.positions import places_by_channel, sinusoids
from moodal.methods.mult import MulT, MultConfig, pair

WIDTHS = {"text": 300, "audio": 74, "vision": 35}
STEPS = {"text": 50, "audio": 500, "vision": 375}
ROWS = 16
SILENT = {f"{name}_dropout": 0.0 for name in ("embedding", "attention", "relu", "residual", "head")}


def main() -> None:
    """Measure and print, as lines or as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        print(json.dumps(memory(options.memory_of, options)))
        return
    report = measure(options)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:36s} {value:.4g}" if isinstance(value, float) else f"{name:36s} {value}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers. Times are medians over the turns, in seconds of the wall and of all threads together."""
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "heads": options.heads}
    report |= agreement(options.heads)
    for kind in ("dropout", "no_dropout"):
        method, batch = build(options.heads, **({} if kind == "dropout" else SILENT)), make_batch()
        turns = {name: stepper(form, method, batch) for name, form in FORMS.items()}
        wall, cpu = take_turns(turns, options.rounds)
        for name in FORMS:
            report[f"{kind}_{name}_s"] = statistics.median(wall[name])
            report[f"{kind}_{name}_cpu_s"] = statistics.median(cpu[name])
        report[f"{kind}_speed_ratio"] = _ratio(wall)
        report[f"{kind}_speed_ratio_best"] = min(wall["published"]) / min(wall["ours"])
        report[f"{kind}_speed_ratio_cpu_time"] = _ratio(cpu)
    for name in FORMS:
        found = child(name, options)
        report |= {f"{name}_memory_mib": found["step"], f"{name}_memory_before_mib": found["before"]}
    report["memory_ratio"] = report["ours_memory_mib"] / report["published_memory_mib"]
    return report


def build(heads: int, **settings: float) -> MulT:
    """Our model with the paper's settings, weights from seed 0."""
    torch.manual_seed(0)
    streams = {m: StreamSpec("features", width) for m, width in WIDTHS.items()}
    return MulT(MultConfig(heads=heads, **settings), DataSpec(streams=streams, task=Regression(-3.0, 3.0)))


def make_batch() -> Batch:
    """Random streams at their full lengths, so that nothing is padding."""
    torch.manual_seed(1)
    streams = {m: Stream(torch.randn(ROWS, n, WIDTHS[m]), torch.ones(ROWS, n).bool()) for m, n in STEPS.items()}
    target = Target(torch.randn(ROWS), torch.ones(ROWS).bool())
    return Batch(ids=tuple(map(str, range(ROWS))), index=torch.arange(ROWS), streams=streams, target=target)


def stepper(predict: Callable[[MulT, Batch], Tensor], method: MulT, batch: Batch) -> Callable[[], None]:
    """One training step of ``method`` whose prediction is computed by ``predict``."""
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-4)

    def step() -> None:
        method.train()
        optimiser.zero_grad(set_to_none=True)
        (predict(method, batch) - batch.target.value).abs().mean().backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()

    return step


def take_turns(
    turns: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each function, called one after the other, ``rounds`` times after one to warm up."""
    wall: dict[str, list[float]] = {name: [] for name in turns}
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, function in turns.items():
            start, busy = time.perf_counter(), time.process_time()
            function()
            if number >= 1:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    return wall, cpu


def agreement(heads: int) -> dict[str, float]:
    """Largest difference of predictions and of gradient norms of the two forms, nothing dropped."""
    found = {}
    for name, form in FORMS.items():
        method, batch = build(heads, **SILENT).train(), make_batch()
        prediction = form(method, batch)
        (prediction - batch.target.value).abs().mean().backward()
        found[name] = prediction.detach(), torch.stack([p.grad.norm() for p in method.parameters()])
    differences = [(a - b).abs().max().item() for a, b in zip(found["ours"], found["published"])]
    return {"prediction_difference": differences[0], "gradient_norm_difference": differences[1]}


# ---- memory --------------------------------------------------------------------------------------------------------


def child(name: str, options: argparse.Namespace) -> dict[str, float]:
    """``memory`` of one form in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--heads", str(options.heads)]
    done = subprocess.run([*command, "--threads", str(options.threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def memory(name: str, options: argparse.Namespace) -> dict[str, float]:
    """MiB resident at most before two steps, and by how much they raise it."""
    step = stepper(FORMS[name], build(options.heads), make_batch())
    before = resident()
    step(), step()
    return {"before": before, "step": resident() - before}


def resident() -> float:
    """MiB resident at most since this process began. (``ru_maxrss`` alone would begin with the size of the parent.)"""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the published computation ---------------------------------------------------------------------------------------


def ours(method: MulT, batch: Batch) -> Tensor:
    """Our prediction."""
    return method(batch).prediction


def published(method: MulT, batch: Batch) -> Tensor:
    """The same, written out: every block in full, every matrix of weights in memory."""
    cfg, streams = method.cfg, batch.streams
    entered = {}
    for m, entrance in method.entrances.items():
        values = F.dropout(streams[m].data, cfg.embedding_dropout, method.training) if m == "text" else streams[m].data
        entered[m] = F.conv1d(values.transpose(1, 2), entrance.weight).transpose(1, 2)
    ends = []
    for target, sources in method.sources.items():
        parts = [encode(method.crossmodal[pair(target, s)], entered[target], entered[s]) for s in sources]
        mixed = torch.cat(parts, dim=-1)
        ends.append(encode(method.memories[target], mixed, None)[:, -1])
    return method.head(torch.cat(ends, dim=-1))


def encode(encoder: CrossmodalEncoder, target: Tensor, source: Tensor | None) -> Tensor:
    """One encoder: (N, T, D) reads (N, S, D), or itself."""
    z, k, v = (None if x is None else encoder.dropout(placed(x)) for x in (target, source, source))
    steps, keys = target.shape[1], target.shape[1] if source is None else source.shape[1]
    mask = torch.full((steps, keys), float("-inf")).triu(1 + abs(keys - steps))
    for layer in encoder.layers:
        z = block(layer, z, z if k is None else k, z if v is None else v, mask)
    return encoder.norm(z)


def placed(values: Tensor) -> Tensor:
    """Scaled, and with positions."""
    table = sinusoids(values.shape[1], values.shape[2], like=values)
    return values.shape[2] ** 0.5 * values + table[places_by_channel(values)]


def block(layer: CrossmodalLayer, z: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One block, with one LayerNorm for query, key and value."""
    z = z + layer.dropout(attend(layer.attention, layer.norm(z), layer.norm(k), layer.norm(v), mask))
    inner, dropout = layer.feed_forward, layer.feed_forward.inner_dropout
    return z + inner.dropout(inner.second(dropout(F.relu(inner.first(inner.norm(z))))))


def attend(attention: PackedAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention by plain products: all weights, a softmax of them, all of them dropped or not."""
    (rows, steps, width), heads = query.shape, attention.heads
    maps = zip((query, key, value), attention.weight.chunk(3), attention.bias.chunk(3))
    q, k, v = (
        F.linear(x, weight, bias).view(rows, -1, heads, width // heads).transpose(1, 2).flatten(0, 1)
        for x, weight, bias in maps
    )
    weights = torch.bmm(q * (width // heads) ** -0.5, k.transpose(1, 2)) + mask
    weights = F.dropout(weights.softmax(dim=-1), attention.dropout, attention.training)
    mixed = torch.bmm(weights, v).view(rows, heads, steps, -1).transpose(1, 2).flatten(2)
    return attention.out(mixed)


FORMS: dict[str, Callable[[MulT, Batch], Tensor]] = {"published": published, "ours": ours}


def _ratio(times: dict[str, list[float]]) -> float:
    return statistics.median(a / b for a, b in zip(times["published"], times["ours"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8, help="8: the paper's for MOSEI; 10: for MOSI")
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
