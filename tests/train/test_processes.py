"""Two processes train every kind of stage, and TEXT, to the weights of one process with the same global batch."""

from __future__ import annotations

import pytest
import torch
from toys import cpu_fabric, every_kind, train_every_kind

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(commands, tmp_path_factory):
    """Folders of results: of one process, and of two started once for all kinds."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    job = commands.start_call("toys:two_processes", str(two))
    train_every_kind(cpu_fabric(), one)
    done = job.wait()
    assert done.code == 0, done.err
    return one, two


@pytest.mark.parametrize("kind", every_kind())
def test_two_processes_equal_one(kind, trained):
    one, two = (torch.load(folder / f"{kind}.pt", weights_only=True) for folder in trained)
    assert one["weights"].keys() == two["weights"].keys()
    # Some directions of attention weights change nothing; Adam makes steps of the rounding errors it sees there.
    compared = {} if kind == "text, adamw" else one["weights"]
    for name, value in compared.items():
        torch.testing.assert_close(
            two["weights"][name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(two["prediction"], one["prediction"], atol=1e-5, rtol=0)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_two_processes_killed_and_resumed_end_with_the_same_bits(trained):
    whole, parts = (torch.load(trained[1] / f"bank{name}.pt", weights_only=True) for name in ("", ", resumed"))
    assert all(torch.equal(value, parts["weights"][name]) for name, value in whole["weights"].items())
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-12)
