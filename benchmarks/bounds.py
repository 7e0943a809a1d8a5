"""Bounds of mutual information where it is known: correlated Gaussians, trained critics, fresh samples.

    python benchmarks/bounds.py --out FOLDER       writes bounds.csv and bounds.png there and prints the tables

x and y have D coordinates each; those of a pair are correlated by rho, all others independent: I = -D/2 ln(1 - rho²). One
network for each rho and bound is trained on samples that are never seen twice and evaluated on others. Beside it stands
what the bound itself says: the same bound with the exact density ratio, or the exact conditional, for the network.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.bench.style import COLOURS, INK, new_figure, png, styled
from moodal.core.files import aside, write_text
from moodal.losses.bounds import (
    barber_agakov,
    club,
    donsker_varadhan,
    gaussian_log_density,
    infonce,
    leave_one_out,
    nwj,
)
from moodal.losses.gaussian import standard_kl

RHOS = tuple(k / 10 for k in range(1, 10))
DIMENSIONS = (2, 20)
#: rows of a table of all pairs (InfoNCE, leave one out); rows of a training step, and of one for tables.
TABLE, ROWS, TABLE_ROWS = 256, 2048, 512
#: how many y each x meets besides its own, where there is no table.
STRANGERS = 4
#: an evaluation: how many blocks, whose spread gives the standard error, and rows of a block.
BLOCKS, BLOCK_ROWS, TABLE_BLOCK_ROWS = 32, 8192, 4096

#: R correlations side by side, n rows each: (R, n, D).
Sample = tuple[Tensor, Tensor]


def draw(rows: int, width: int) -> Sample:
    """Fresh x and y from torch's global generator."""
    rho = torch.tensor(RHOS)[:, None, None]
    x, noise = torch.randn(2, len(RHOS), rows, width)
    return x, rho * x + (1 - rho.square()).sqrt() * noise


def strangers(y: Tensor) -> Tensor:
    """(R, n, D) -> (R, STRANGERS, n, D): the y of rows further on. What depends on y alone then cancels out."""
    return torch.stack([y.roll(shift, dims=1) for shift in range(1, 1 + STRANGERS)], dim=1)


def in_tables(values: Tensor) -> Tensor:
    """(R, n, D) -> (R, n / TABLE, TABLE, D)."""
    return values.unflatten(1, (-1, TABLE))


class Networks(nn.Module):
    """A network for each correlation, all in batched products: A x + V2 SiLU(V1 x + b) + c."""

    def __init__(self, entering: int, leaving: int, hidden: int = 32) -> None:
        super().__init__()
        self.across = nn.Parameter(0.3 * torch.randn(len(RHOS), entering, leaving) / entering**0.5)
        self.first = nn.Parameter(torch.randn(len(RHOS), entering, hidden) / entering**0.5)
        self.second = nn.Parameter(0.3 * torch.randn(len(RHOS), hidden, leaving) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(len(RHOS), 1, hidden))
        self.shift = nn.Parameter(torch.zeros(len(RHOS), 1, leaving))

    def forward(self, values: Tensor) -> Tensor:
        """(R, n, entering) -> (R, n, leaving)."""
        hidden = F.silu(torch.baddbmm(self.bias, values, self.first))
        return torch.baddbmm(torch.baddbmm(self.shift, values, self.across), hidden, self.second)


class Critic(nn.Module):
    """T(x, y) = g(x) · h(y)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = Networks(width, 32), Networks(width, 32)

    def pairs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of rows (R, n) and of x with strangers (R, STRANGERS n)."""
        one, other = self.one(x), self.other(y)
        return (one * other).sum(dim=-1), (one.unsqueeze(1) * strangers(other)).sum(dim=-1).flatten(1)

    def table(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs within tables (R, n / TABLE, TABLE, TABLE)."""
        return in_tables(self.one(x)) @ in_tables(self.other(y)).transpose(2, 3)


class Conditional(nn.Module):
    """ln q(y|x): Gaussian, with a network each for mean and logarithm of the variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean, self.log_variance = Networks(width, width), Networks(width, width)

    def pairs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Densities of rows (R, n) and of x with strangers (R, STRANGERS n)."""
        mean, variance = self.mean(x), self.log_variance(x)
        apart = gaussian_log_density(strangers(y), mean.unsqueeze(1), variance.unsqueeze(1))
        return gaussian_log_density(y, mean, variance), apart.flatten(1)


class Exact:
    """ln p(y|x), or with ``ratio`` ln p(y|x) / p(y), in place of a network."""

    def __init__(self, *, ratio: bool) -> None:
        self.ratio = ratio

    def pairs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As of ``Critic``."""
        others = strangers(y)
        xx, yy = x.square().sum(-1), y.square().sum(-1)
        apart = self._score((x.unsqueeze(1) * others).sum(-1), xx.unsqueeze(1), others.square().sum(-1), x.shape[-1])
        return self._score((x * y).sum(-1), xx, yy, x.shape[-1]), apart.flatten(1)

    def table(self, x: Tensor, y: Tensor) -> Tensor:
        """As of ``Critic``."""
        x, y = in_tables(x), in_tables(y)
        xx, yy = x.square().sum(-1).unsqueeze(-1), y.square().sum(-1).unsqueeze(-2)
        return self._score(x @ y.transpose(2, 3), xx, yy, x.shape[-1])

    def _score(self, product: Tensor, xx: Tensor, yy: Tensor, width: int) -> Tensor:
        """From x·y, x·x and y·y."""
        rho = torch.tensor(RHOS).view(-1, *[1] * (product.dim() - 1))
        left = 1 - rho.square()
        density = -0.5 * ((yy - 2 * rho * product + rho.square() * xx) / left + width * (math.tau * left).log())
        return density + 0.5 * (yy + width * math.log(math.tau)) if self.ratio else density


def by_table(bound: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """(R, tables, TABLE, TABLE) -> (R,) the mean of ``bound`` over the tables."""
    return torch.vmap(bound)(scores.flatten(0, 1)).view(scores.shape[:2]).mean(1)


def entropy(y: Tensor) -> Tensor:
    """(R,) H(Y) as the sample has it: its noise is also that of E ln q(y|x), and cancels it."""
    zero = torch.zeros_like(y)
    return -gaussian_log_density(y, zero, zero).mean(1)


def prior(x: Tensor) -> Tensor:
    """(R,) E KL(p(y|x) ‖ N(0, I)). Here the prior is the true p(y), so the bound is an equality."""
    rho = torch.tensor(RHOS)[:, None, None]
    return standard_kl(rho * x, (1 - rho.square()).sqrt().expand_as(x)).mean(1)


@dataclass(frozen=True)
class Bound:
    """``value`` of a network (or what is exact) on x and y: (R,). ``network``: None where only the exact density will do."""

    label: str
    value: Callable[[Any, Tensor, Tensor], Tensor]
    exact: Exact
    network: type[Critic] | type[Conditional] | None = None
    above: bool = False
    table: bool = False
    among: int | None = None  # rows in a logarithm of a mean, or in a mean of e^T
    trained_as: str | None = None  # the bound whose network this one takes


RATIO, DENSITY = Exact(ratio=True), Exact(ratio=False)
BOUNDS: dict[str, Bound] = {
    "donsker_varadhan": Bound(
        "Donsker-Varadhan",
        lambda net, x, y: torch.vmap(donsker_varadhan)(*net.pairs(x, y)),
        RATIO,
        Critic,
        among=ROWS,
    ),
    "nwj": Bound(
        "NWJ",
        lambda net, x, y: torch.vmap(nwj)(*(1 + scores for scores in net.pairs(x, y))),
        RATIO,
        Critic,
        among=ROWS,
    ),
    "infonce": Bound(
        "InfoNCE",
        lambda net, x, y: by_table(infonce, net.table(x, y)),
        RATIO,
        Critic,
        table=True,
        among=TABLE,
    ),
    "barber_agakov": Bound(
        "Barber-Agakov",
        lambda net, x, y: torch.vmap(barber_agakov)(net.pairs(x, y)[0], entropy(y)),
        DENSITY,
        Conditional,
    ),
    "club": Bound(
        "CLUB",
        lambda net, x, y: torch.vmap(club)(*net.pairs(x, y)),
        DENSITY,
        Conditional,
        above=True,
        trained_as="barber_agakov",
    ),
    "leave_one_out": Bound(
        "leave one out", lambda net, x, y: by_table(leave_one_out, net.table(x, y)), DENSITY, above=True, table=True
    ),
    "prior": Bound("prior", lambda net, x, y: prior(x), DENSITY, above=True),  # noqa: ARG005
}


def train(bound: Bound, width: int, *, steps: int, rate: float) -> nn.Module:
    """Networks that make ``bound`` as large as they can."""
    assert bound.network is not None
    network = bound.network(width)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        (-bound.value(network, *draw(TABLE_ROWS if bound.table else ROWS, width)).sum()).backward()
        clip(network)
        optimiser.step()
        schedule.step()
    return network


def clip(network: nn.Module, limit: float = 1.0) -> None:
    """Shorten the gradient of each correlation's network to ``limit``, so that none disturbs another."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (limit / norms.clamp(min=limit))[:, None, None]
    for gradient in gradients:
        gradient.mul_(factor)


@torch.no_grad()
def evaluate(bound: Bound, network: Any, width: int) -> tuple[Tensor, Tensor]:
    """(R,) the mean of the bound over blocks of fresh samples, and its standard error."""
    rows = TABLE_BLOCK_ROWS if bound.table else BLOCK_ROWS
    values = torch.stack([bound.value(network, *draw(rows, width)).double() for _ in range(BLOCKS)])
    return values.mean(0), values.std(0) / BLOCKS**0.5


@dataclass(frozen=True)
class Row:
    """One measured number. ``asked``: whether the best critic itself is near enough, so that 10 % may be asked for."""

    dimensions: int
    rho: float
    information: float
    bound: str
    above: bool
    asked: bool
    value: float  # with the trained network; where there is none, the exact one
    error: float  # standard error of ``value``
    exact: float
    exact_error: float

    @property
    def share(self) -> float:
        return self.value / self.information

    @property
    def holds(self) -> bool:
        """On its side of the information, within three standard errors."""
        beyond = self.value - self.information
        return (-beyond if self.above else beyond) <= 3 * self.error

    @property
    def near(self) -> bool:
        return self.share >= 0.9


def expected_error(rho: float, width: int, rows: int | None) -> float:
    """By how much the logarithm of a mean of e^T over ``rows`` pairs apart is off, to second order, for the best critic T.

    Var(e^T) = (1 - rho²)^-D - 1, and the error about Var / (2 rows). 0 where there is no such mean (None).
    """
    return 0.0 if rows is None else ((1 - rho**2) ** -width - 1) / (2 * rows)


def measure(width: int, *, steps: int, rate: float, seed: int) -> list[Row]:
    """Every bound at every correlation, for ``width`` coordinates."""
    networks: dict[str, Any] = {}
    rows: list[Row] = []
    for name, bound in BOUNDS.items():
        started = time.perf_counter()
        torch.manual_seed(seed)
        exact = evaluate(bound, bound.exact, width)
        if bound.network is not None:
            source = bound.trained_as or name
            networks.setdefault(source, train(BOUNDS[source], width, steps=steps, rate=rate))
            found = evaluate(bound, networks[source], width)
        else:
            found = exact
        for k, rho in enumerate(RHOS):
            information = -width / 2 * math.log(1 - rho**2)
            asked = not bound.above and expected_error(rho, width, bound.among) <= 0.05 * information
            numbers = [float(part[k]) for part in (*found, *exact)]
            rows.append(Row(width, rho, information, name, bound.above, asked, *numbers))
        print(f"D = {width}, {bound.label}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """All numbers, one line each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)] for row in rows])
    return stream.getvalue()


def as_table(rows: Sequence[Row], width: int) -> str:
    """Markdown: nats by correlation and bound, in brackets where 10 % is not asked for; a fault is marked."""
    lines = ["| rho | I | " + " | ".join(b.label for b in BOUNDS.values()) + " |", "|---" * (2 + len(BOUNDS)) + "|"]
    for rho in RHOS:
        cells = [row for row in rows if row.dimensions == width and row.rho == rho]
        lines.append(f"| {rho:.1f} | {cells[0].information:.4f} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    text = f"{row.value:.4f}" if row.above or row.asked else f"({row.value:.4f})"
    fault = not row.holds or (row.asked and not row.near)
    return f"**{text}** !" if fault else text


def verdict(rows: Sequence[Row]) -> str:
    """One sentence with the counts."""
    asked = [row for row in rows if row.asked]
    worst = min(asked, key=lambda row: row.share)
    return (
        f"{sum(row.holds for row in rows)} of {len(rows)} numbers are on their side of the information within three standard "
        f"errors; {sum(row.near for row in asked)} of the {len(asked)} for which 10 % can be asked are that near, the worst "
        f"at {worst.share:.3f} ({BOUNDS[worst.bound].label}, D = {worst.dimensions}, rho = {worst.rho})."
    )


@styled
def plot(rows: Sequence[Row]) -> bytes:
    """Above, nats; below, shares of the information. Hollow: 10 % is not asked for. What is below zero is not shown."""
    figure = new_figure(9.0, 6.2)
    axes = figure.subplots(2, len(DIMENSIONS), sharex=True, height_ratios=(3, 2))
    for column, width in enumerate(DIMENSIONS):
        nats, shares = axes[:, column]
        for (name, bound), colour in zip(BOUNDS.items(), COLOURS, strict=True):
            own = [row for row in rows if row.dimensions == width and row.bound == name and row.value > 0]
            style = {"color": colour, "linestyle": "--" if bound.above else "-", "linewidth": 1.2}
            nats.plot([r.rho for r in own], [r.value for r in own], label=bound.label, **style)
            shares.plot([r.rho for r in own], [r.share for r in own], **style)
            for axis, height in ((nats, lambda r: r.value), (shares, lambda r: r.share)):
                for row in own:
                    face = colour if row.above or row.asked else "white"
                    axis.plot(row.rho, height(row), "o", markersize=3.5, color=colour, markerfacecolor=face)
        nats.plot(
            RHOS,
            [-width / 2 * math.log(1 - r * r) for r in RHOS],
            color=INK,
            linewidth=2.4,
            alpha=0.35,
            label="I(X; Y)",
        )
        nats.set(yscale="log", title=f"{width} coordinates", ylabel="nats")
        nats.yaxis.set_major_formatter("{x:g}")
        shares.axhspan(0.9, 1.0, color=INK, alpha=0.08, linewidth=0)
        shares.set(ylim=(0, 2.6), xlabel="correlation of a pair of coordinates", ylabel="share of I(X; Y)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return png(figure, dpi=90)


def main() -> None:
    """Measure, write, print."""
    options = _options()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    rows = [
        row for width in DIMENSIONS for row in measure(width, steps=options.steps, rate=options.rate, seed=options.seed)
    ]
    write_text(options.out / "bounds.csv", as_csv(rows))
    with aside(options.out / "bounds.png") as place:
        place.write_bytes(plot(rows))
    for width in DIMENSIONS:
        print(f"D = {width}\n\n{as_table(rows, width)}\n")
    print(verdict(rows))
    print(f"{time.perf_counter() - started:.0f} s; wrote bounds.csv and bounds.png to {options.out}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of bounds.csv and bounds.png")
    parser.add_argument("--steps", type=int, default=500, help="training steps of each network")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
