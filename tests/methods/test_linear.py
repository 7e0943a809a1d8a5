"""The linear baseline: linear in the clip means, on columns measured before training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import job, prepared, toy_config

from moodal.core.batch import Batch, Stream
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.methods.linear import Linear, LinearConfig

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = {"text": 3, "audio": 2, "vision": 4}


def build(**streams: StreamSpec) -> Linear:
    torch.manual_seed(0)
    known = streams or {m: StreamSpec("features", width) for m, width in WIDTHS.items()}
    return Linear(LinearConfig(), DataSpec(streams=known, task=Regression(-3.0, 3.0)))


def batch(rows: int = 5) -> Batch:
    torch.manual_seed(1)
    mask = torch.arange(4) < torch.randint(1, 5, (rows,))[:, None]
    streams = {m: Stream(torch.randn(rows, 4, width), mask) for m, width in WIDTHS.items()}
    return Batch(ids=tuple("abcde"[:rows]), index=torch.arange(rows), streams=streams)


def changed(given: Batch, function) -> Batch:
    return replace(given, streams={m: replace(s, data=function(s.data)) for m, s in given.streams.items()})


def test_it_is_one_map_of_the_means_over_real_steps():
    method, given = build(), batch()
    means = [(s.data * s.mask[..., None]).sum(1) / s.mask.sum(1, keepdim=True) for s in given.streams.values()]
    expected = torch.cat(means, 1) @ method.map.weight[0] + method.map.bias
    torch.testing.assert_close(method(given).prediction, expected)
    assert sum(p.numel() for p in method.parameters()) == sum(WIDTHS.values()) + 1


def test_the_order_of_steps_does_not_matter():
    method, given = build(), batch()
    given = replace(given, streams={m: replace(s, mask=torch.ones(5, 4).bool()) for m, s in given.streams.items()})
    torch.testing.assert_close(
        method(changed(given, lambda x: x.flip(1))).prediction, method(given).prediction, rtol=0, atol=1e-6
    )


def test_columns_are_measured_on_the_training_rows_that_have_them(tmp_path):
    cfg = toy_config(method="linear", model=LinearConfig(), epochs=1)
    data = prepared(replace(cfg, reader=replace(cfg.reader, missing=0.3)))
    fit = job(Linear, cfg, data, tmp_path)
    fit.run()
    rows = [data.splits["train"].rows(torch.tensor([i])) for i in range(41)]
    audio = torch.cat([r.streams["audio"].data.mean(1) for r in rows if bool(r.streams["audio"].mask.any())])
    assert len(audio) < 41
    text = data.spec.streams["text"].width
    found = fit.method.centre[text : text + 3], fit.method.spread[text : text + 3]
    torch.testing.assert_close(found, (audio.mean(0), audio.std(0, correction=0)), rtol=1e-4, atol=1e-5)
    assert fit.method.offset.item() == pytest.approx(data.splits["train"].target.value.mean().item(), abs=1e-6)


def test_a_missing_modality_and_one_at_its_centre_are_predicted_alike():
    method, given = build(), batch()
    method.centre.normal_()
    method.spread.uniform_(0.5, 2.0)
    audio = given.streams["audio"]
    centre = method.centre[WIDTHS["text"] : WIDTHS["text"] + WIDTHS["audio"]].expand_as(audio.data)
    found = [
        method(replace(given, streams={**given.streams, "audio": stream})).prediction
        for stream in (Stream(centre, audio.mask), Stream(audio.data, torch.zeros_like(audio.mask)))
    ]
    torch.testing.assert_close(*found)


def test_an_encoder_that_learns_is_refused():
    needs = Linear.needs(LinearConfig())
    tokens = DataSpec(streams={"text": StreamSpec("tokens", 3, encoder="minilm")}, task=Regression(-3.0, 3.0))
    with pytest.raises(MoodalError, match=r"data\.text\.mode"):
        needs.verify("linear", tokens)
