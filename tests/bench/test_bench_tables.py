"""Tables: what a cell says, what is marked, and that each format escapes what it must."""

from __future__ import annotations

import csv
import io

import pytest

from moodal.bench.tables import Column, Number, Row, Table, seed_cells
from moodal.core.errors import MoodalError

NAN = float("nan")
MAE, ACC = Column("mae", "MAE", "low", 3), Column("acc", "Acc_2 %", "high", 2, 100.0)


def table(*rows: Row) -> Table:
    return Table((Column("name", "Name"), MAE, ACC), rows)


def body(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_mean_and_sample_deviation_over_seeds():
    text = table(Row({"name": "a", "mae": Number((0.5, 0.7)), "acc": Number((0.81,))})).markdown()
    assert body(text)[0] == ["a", "0.600 ± 0.141", "81.00"]


def test_fewer_seeds_than_planned_are_said():
    assert "(2 of 3 seeds)" in table(Row({"name": "a", "mae": Number((0.5, 0.7), planned=3)})).markdown()
    assert "seeds" not in table(Row({"name": "a", "mae": Number((0.5, 0.7, 0.6), planned=3)})).markdown()


def test_a_seed_without_value_leaves_no_mean():
    text = table(Row({"name": "a", "mae": Number((0.5, NAN))})).markdown()
    assert body(text)[0][1] == "not defined"


def test_absent_cell_is_a_dash():
    assert body(table(Row({"name": "a", "acc": Number((0.5,))})).markdown())[0][1] == "\N{EN DASH}"


def test_best_is_bold_by_direction_with_ties_and_without_outsiders():
    rows = (
        Row({"name": "a", "mae": Number((0.5,)), "acc": Number((0.7,))}),
        Row({"name": "b", "mae": Number((0.50001,)), "acc": Number((0.8,))}),
        Row({"name": "c", "mae": Number((0.1,)), "acc": Number((0.9,))}, competes=False),
        Row({"name": "d", "mae": Number((NAN,)), "acc": Number((0.1,))}),
    )
    cells = body(table(*rows).markdown())
    assert [row[1] for row in cells] == ["**0.500**", "**0.500**", "0.100", "not defined"]
    assert [row[2] for row in cells] == ["70.00", "**80.00**", "90.00", "10.00"]


def test_interval_and_sign():
    column = Column("d", "D", None, 2, 100.0, signed=True)
    shown = Table(
        (column,), (Row({"d": Number((-0.01,), low=-0.02, high=0.003)}), Row({"d": Number((-0.00001,))}))
    ).markdown()
    assert body(shown) == [["\N{MINUS SIGN}1.00 [\N{MINUS SIGN}2.00, +0.30]"], ["0.00"]]


def test_csv_has_unscaled_numbers_deviation_and_count():
    made = table(Row({"name": 'a, "b"', "mae": Number((0.5, 0.7), low=0.4, high=0.8), "acc": Number((0.81,))})).csv()
    row = next(csv.DictReader(io.StringIO(made)))
    assert row["name"] == 'a, "b"'
    assert float(row["mae"]) == pytest.approx(0.6)
    assert (row["mae_seeds"], row["mae_low"], row["mae_high"]) == ("2", "0.4", "0.8")
    assert (row["acc"], row["acc_sd"]) == ("0.81", "")


def test_csv_text_is_no_formula():
    row = next(csv.DictReader(io.StringIO(table(Row({"name": "=cmd()"})).csv())))
    assert row["name"] == "'=cmd()"


def test_markdown_escapes():
    text = table(Row({"name": "a|b_c*d\n<x>"})).markdown()
    assert r"a\|b\_c\*d &lt;x&gt;" in text
    assert len(text.splitlines()) == 3


def test_latex_escapes_and_has_rules():
    made = table(
        Row({"name": r"50% & a_b {x} \y $1", "mae": Number((0.5, 0.6))}), Row({"name": "z", "mae": Number((0.9,))})
    ).latex()
    assert r"50\% \& a\_b \{x\} \textbackslash{}y \$1 & \textbf{0.550 $\pm$ 0.071} & -- \\" in made
    assert all(rule in made for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrl}"))


def test_html_escapes():
    made = Table(
        (Column("name", "<th>"),), (Row({"name": "<script>x</script>"}),), caption="a&b", notes=("<i>",)
    ).html()
    assert (
        "<script>" not in made
        and "&lt;script&gt;" in made
        and "a&amp;b" in made
        and "&lt;th&gt;" in made
        and "<i>" not in made
    )


def test_column_twice_is_refused():
    with pytest.raises(MoodalError, match="each may be there once"):
        Table((MAE, MAE), ())


def test_seed_cells_keep_nulls_as_missing():
    cells = seed_cells([{"mae": 0.5}, {"mae": None}], ["mae", "corr"], planned=2)
    assert list(cells) == ["mae"]
    assert cells["mae"].known == (0.5,)
