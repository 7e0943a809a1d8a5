"""Time one training step of TEXT's fusion part: forward and backward, hidden states of the texts given.

    python benchmarks/text_step.py --threads 2 --json
    python benchmarks/text_step.py --against <checkout of fip-lab/TEXT>     (needs: pip install einops)

Sizes are those of MOSI. With ``--against`` the official model runs in the same process on the same weights, turn by
turn with ours, so that a busy machine slows both; ratios are medians over the turns. Its text encoder is replaced by
the identity, its routing noise silenced by the weights, and its outputs are compared with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moodal.core.batch import Batch, Stream, Target
from moodal.interop import official
from moodal.methods.text import TEXT, TextConfig

WIDTHS = {"text": 768, "audio": 5, "vision": 20}
NAMES = ("text", "audio", "vision", "audio_explanation", "vision_explanation")
STEPS = 50


def main() -> None:
    """Measure and print, as lines or as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs = None if options.against is None else load_official(options.against)
    ours = build(theirs, compiled=options.compile)
    report = measure(ours, theirs, rows=options.batch, rounds=options.rounds)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:32s} {value:.4g}" if isinstance(value, float) else f"{name:32s} {value}")


def build(theirs: nn.Module | None, *, compiled: bool) -> TEXT:
    """Our model at MOSI's sizes, with the weights of the official one if it is there."""
    ours = TEXT(TextConfig(max_steps=STEPS), official.text_spec(WIDTHS))
    if theirs is not None:
        state = theirs.state_dict()
        ours.load_state_dict(official.load_pieces(official.text_pieces(3, 5), state, ours.state_dict()))
    if compiled:
        ours.compile()
    return ours


def measure(ours: TEXT, theirs: nn.Module | None, *, rows: int, rounds: int) -> dict[str, Any]:
    """All numbers. Times are medians over ``rounds`` turns, in seconds unless the name says otherwise."""
    batch = make_batch(rows)
    one = batch.rows(torch.tensor([0]))
    turns: dict[str, Callable[[], Any]] = {
        "step": lambda: step(ours, batch),
        "bf16": lambda: step(ours, batch, bf16=True),
    }
    if theirs is not None:
        turns["official"] = lambda: official_step(theirs, batch)
    turns |= {"peak": lambda: _product(torch.float32), "bf16_peak": lambda: _product(torch.bfloat16)}
    wall, cpu = take_turns(turns, rounds)
    formula, counted = flop(ours.cfg, rows), flop_counted(ours, batch)
    median = {name: statistics.median(times) for name, times in wall.items()}
    peak = 2 * 1536**3 / min(wall["peak"])
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "rounds": rounds,
        "step_s": median["step"],
        "step_best_s": min(wall["step"]),
        "clips_per_s": rows / median["step"],
        "gflop_by_formula": formula / 1e9,
        "gflop_counted": counted / 1e9,
        "gflop_per_s": formula / median["step"] / 1e9,
        "matmul_peak_gflop_per_s": peak / 1e9,
        "share_of_peak": formula / median["step"] / peak,
        "bf16_matmul_peak_gflop_per_s": 2 * 1536**3 / min(wall["bf16_peak"]) / 1e9,
        "bf16_step_s": median["bf16"],
        "one_clip_ms": 1e3 * latency(lambda: ours(one), ours),
    }
    if theirs is not None:
        report |= compare(ours, theirs, batch, wall, cpu)
    return report


def compare(
    ours: TEXT, theirs: nn.Module, batch: Batch, wall: dict[str, list[float]], cpu: dict[str, list[float]]
) -> dict[str, Any]:
    """Ratios of times (official / ours, turn by turn) and the largest difference of the scores."""
    one = batch.rows(torch.tensor([0]))
    ours.eval(), theirs.eval()
    with torch.no_grad():
        difference = (ours(batch).prediction - theirs(*_inputs(batch))[:, 0]).abs().max().item()
    return {
        "official_step_s": statistics.median(wall["official"]),
        "speed_ratio": _ratio(wall, "step"),
        "speed_ratio_best": min(wall["official"]) / min(wall["step"]),
        "speed_ratio_cpu_time": _ratio(cpu, "step"),
        "bf16_speed_ratio": _ratio(wall, "bf16"),
        "official_one_clip_ms": 1e3 * latency(lambda: theirs(*_inputs(one)), theirs),
        "largest_difference": difference,
    }


def take_turns(
    turns: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each function, called one after the other, ``rounds`` times after two to warm up."""
    wall: dict[str, list[float]] = {name: [] for name in turns}
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 2):
        for name, function in turns.items():
            start, busy = time.perf_counter(), time.process_time()
            function()
            if number >= 2:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    return wall, cpu


def step(model: TEXT, batch: Batch, *, bf16: bool = False) -> None:
    """Forward and backward of our loss."""
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model.loss(batch).total
    loss.backward()


def official_step(model: nn.Module, batch: Batch) -> None:
    """Forward and backward of the official loss (MSE)."""
    model.train()
    model.zero_grad(set_to_none=True)
    (model(*_inputs(batch))[:, 0] - batch.target.value).square().mean().backward()


def latency(function: Callable[[], Any], model: nn.Module, rounds: int = 30) -> float:
    """Median seconds of one evaluation."""
    model.eval()
    with torch.no_grad():
        wall, _ = take_turns({"one": function}, rounds)
    return statistics.median(wall["one"])


def make_batch(rows: int) -> Batch:
    """Random streams of 50 steps, nothing padded."""
    mask = torch.ones(rows, STEPS, dtype=torch.bool)
    data = {name: torch.randn(rows, STEPS, WIDTHS.get(name, WIDTHS["text"])) for name in NAMES}
    return Batch(
        ids=tuple(map(str, range(rows))),
        index=torch.arange(rows),
        streams={m: Stream(data[m], mask) for m in NAMES[:3]},
        explanations={role: Stream(data[f"{role}_explanation"], mask) for role in ("audio", "vision")},
        target=Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool)),
    )


def load_official(folder: Path) -> nn.Module:
    """The official model from a checkout at ``folder``, three mixture layers, no clip dropped, noise silenced."""
    text_encoder = types.ModuleType("model.bert")
    text_encoder.BertTextEncoder = _Identity  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    sys.modules["model.bert"] = text_encoder
    try:
        from model.TEXT import TEXT as Official  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit(
            f"error: {folder} is no checkout of fip-lab/TEXT, or einops is not installed ({error})"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        model = Official(dataset="mosi", fusion_layer_depth=3, capacity_factor=10.0)
    for name, parameter in model.named_parameters():
        if "noise_linear" in name:
            nn.init.constant_(parameter, -1e4 if name.endswith("bias") else 0.0)
    return model


class _Identity(nn.Module):
    """Stands for the text encoder: its hidden states are given."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, states: Tensor) -> Tensor:
        return states


def flop(cfg: TextConfig, rows: int) -> float:
    """Multiplications and additions of one step's matrix products: forward, and twice that backward.

    The inputs need no gradient, so their projections count once backward. Convolutions are left out.
    """
    width, inner, length = cfg.width, cfg.heads * cfg.head_width, STEPS + 1
    total, places = 3 * length, 3
    entering = sum(STEPS * WIDTHS.get(name, WIDTHS["text"]) * width for name in NAMES)
    layer = length * (4 * width * inner + 2 * length * inner + 2 * width * cfg.feed_forward)
    temporal = 2 * length * 3 * width * cfg.temporal_inner
    experts = 2 * cfg.top_k * width * cfg.expert_hidden
    whole = total * (4 * width * inner + 2 * total * inner + experts)
    last = places * (4 * width * inner + 2 * cfg.heads * total * width + experts)
    forward = 7 * layer + temporal + (cfg.layers - 1) * whole + last
    return 2.0 * rows * (3 * forward + 2 * entering)


def flop_counted(model: TEXT, batch: Batch) -> int:
    """The same by torch's counter, which has to be told that a product may be added in place."""

    def added(_: list[int], first: list[int], second: list[int], **__: Any) -> int:
        return 2 * first[0] * first[1] * second[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        step(model, batch)
    return counter.get_total_flops()


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    told = batch.explanations
    return (*(batch.streams[m].data for m in NAMES[:3]), told["audio"].data, told["vision"].data)


def _ratio(times: dict[str, list[float]], name: str) -> float:
    return statistics.median(a / b for a, b in zip(times["official"], times[name]))


def _product(dtype: torch.dtype) -> None:
    torch.mm(_SQUARES[dtype], _SQUARES[dtype])


_SQUARES = {dtype: torch.ones(1536, 1536, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--against", type=Path, help="checkout of fip-lab/TEXT to be timed in the same run")
    parser.add_argument("--compile", action="store_true", help="compile our model first")
    return parser.parse_args()


if __name__ == "__main__":
    main()
