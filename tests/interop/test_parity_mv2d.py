"""The checks of MV2D and VSD notice faults, work for other sizes, and the released schedules are what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moodal.core.errors import DataError
from moodal.interop import parity_mv2d, parity_vsd
from moodal.interop.parity import check_file
from moodal.losses.segmentation import segmentation_losses

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity"
needs_cases = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recorded cases are not beside the repository")
SETTING = {"epochs": 25, "batch": 4, "size": 28130}


def test_segmentation_warms_up_to_one_only_with_several_devices():
    assert parity_mv2d.rate_factor(0, devices=1, **SETTING) == 1.0
    assert parity_mv2d.rate_factor(332, devices=3, **SETTING) == 1.0  # the last of the warm-up
    assert parity_mv2d.rate_factor(333, devices=3, **SETTING) == 1.0  # the first after it
    assert 0 < parity_mv2d.rate_factor(25 * 2345 - 1, devices=3, **SETTING) < 1e-3  # the end: not quite 0


def test_reidentification_warms_up_one_epoch_early():
    assert [round(parity_vsd.rate_factor(epoch), 3) for epoch in (0, 8, 9, 208, 209)] == [0.109, 0.901, 1, 1, 0.1]


@needs_cases
@pytest.mark.parametrize(
    ("case", "name", "place", "amount"),
    [
        ("mv2d/losses", "input.vib_out", (0, 0), 0.01),
        ("mv2d/losses", "output.grad.vsd_loss.vib_out", (0, 0), 1e-4),
        ("mv2d/modules", "state.fusion.ai_layer.fc1.0.running_var", (0,), 0.1),
        ("mv2d/modules", "output.train.fused", (0, 0), 1e-3),
        ("vsd/losses", "input.v_ms.observation_logits", (0, 0), 0.01),
        ("vsd/losses", "output.grad.vcd.i_ms.representation_logits", (0, 0), 1e-4),
        ("vsd/modules", "state.cam._cam_module.gamma", (0,), 0.01),
        ("vsd/sysu", "output.all_2shot.gallery_ids", (0,), 1),
        ("vsd/regdb", "input.thermal", (0, 0), 0.01),
    ],
)
def test_a_changed_case_fails(case: str, name: str, place: tuple[int, ...], amount: float, tmp_path: Path):
    path = tmp_path / Path(case).name
    tensors, facts = load_file(FOLDER / f"{case}.safetensors"), (FOLDER / f"{case}.json").read_text("utf-8")
    tensors[name][place] += amount
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(facts)
    assert not check_file(path.with_suffix(".json")).ok


@needs_cases
@pytest.mark.parametrize(("case", "kind"), [("mv2d/losses", "losses"), ("vsd/losses", "losses")])
def test_a_loss_that_is_not_known_is_named(case: str, kind: str, tmp_path: Path):
    facts = json.loads((FOLDER / f"{case}.json").read_text("utf-8"))
    facts[kind]["somthing"] = 1.0
    (tmp_path / "case.json").write_text(json.dumps(facts))
    (tmp_path / "case.safetensors").write_bytes((FOLDER / f"{case}.safetensors").read_bytes())
    with pytest.raises(DataError, match="'somthing', which is not compared"):
        check_file(tmp_path / "case.json")


def test_another_size_and_seed(tmp_path: Path):
    draw = torch.Generator().manual_seed(3)
    logits = {name: torch.randn(9, 5, generator=draw) for name in ("x_vox", "x_pix", "vib_out")}
    label = torch.randint(0, 5, (9,), generator=draw)
    parts = segmentation_losses(*logits.values(), label, ignored=2)
    facts = {
        "method": "mv2d",
        "case": "more",
        "config": {"classes": 5, "ignore_index": 2},
        "losses": {"vsd_loss": parts.sufficiency.item(), "total_as_coded": parts.total.item()},
        "grad_norm": {"vsd_loss": {"x_vox": None}},
        "tolerance": {"loss": 1e-6, "gradients": 1e-6},
    }
    save_file({**{f"input.{n}": x for n, x in logits.items()}, "input.label": label}, tmp_path / "more.safetensors")
    (tmp_path / "more.json").write_text(json.dumps(facts))
    assert check_file(tmp_path / "more.json").ok
    facts["config"]["ignore_index"] = 1
    (tmp_path / "more.json").write_text(json.dumps(facts))
    assert not check_file(tmp_path / "more.json").ok
