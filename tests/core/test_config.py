"""Settings: layers, origins, conversion, all faults at once, and the way to YAML and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from moodal.build import configure, recipes
from moodal.core.config import convert, digest, leaves, parse_override, read_yaml, resolve, to_plain, to_yaml
from moodal.core.errors import ConfigError, MoodalError, check
from moodal.core.settings import RunConfig
from moodal.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float | None = None
    names: tuple[str, ...] = ("a",)

    def __post_init__(self) -> None:
        check(self.rate is None or self.rate > 0, f"rate is {self.rate}; it must be positive.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    size: int = 3
    kind: Literal["one", "two"] = "one"
    flag: bool = False
    span: tuple[int, int] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    groups: Mapping[str, Inner] = field(default_factory=dict)
    part: Any = None


def made(*layers: Mapping[str, Any], **substitutes: type) -> Outer:
    return resolve(Outer, [(f"layer {n}", layer) for n, layer in enumerate(layers)], substitutes).config


def faults(*layers: Mapping[str, Any], **substitutes: type) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as found:
        made(*layers, **substitutes)
    return found.value.faults


def test_later_layers_win_and_every_value_knows_its_origin():
    layers = [
        ("file", {"name": "x", "inner": {"rate": 0.1}, "size": 4}),
        ("line", {"inner.rate": 0.2, "groups.main.rate": 1}),
    ]
    found = resolve(Outer, layers, {})
    assert found.config == Outer(name="x", size=4, inner=Inner(rate=0.2), groups={"main": Inner(rate=1.0)})
    assert found.origins["name"] == "file"
    assert found.origins["inner.rate"] == found.origins["groups.main.rate"] == "line"
    assert found.origins["flag"] == found.origins["inner.names"] == "default"


def test_all_faults_are_told_at_once():
    found = faults(
        {"name": "x", "sise": 4, "flag": 3, "inner": {"rate": -1.0, "naems": []}},
        {"kind": "three", "groups.main.rte": 1},
    )
    assert len(found) == 6
    told = "\n".join(found)
    assert "layer 0: sise: no such setting; did you mean 'size'?" in told
    assert "layer 0: flag is 3; expected true or false." in told
    assert "layer 0: inner.naems: no such setting; did you mean 'inner.names'?" in told
    assert "layer 1: kind is 'three'; expected one of one, two." in told
    assert "layer 1: groups.main.rte: no such setting; did you mean 'groups.*.rate'?" in told
    assert "inner: rate is -1.0; it must be positive." in told


def test_a_setting_in_the_wrong_place_is_recognised():
    assert faults({"name": "x"}, {"naems": []}) == ("layer 1: naems: no such setting; did you mean 'name'?",)
    assert faults({"name": "x"}, {"rate": 1.0}) == ("layer 1: rate: no such setting; did you mean 'inner.rate'?",)


def test_what_is_required_and_missing_is_named():
    assert faults({"size": 1}) == ("name: required and not given.",)


def test_a_mapping_where_a_number_belongs_is_a_fault():
    assert faults({"name": "x", "size": {"a": 1}}) == ("layer 0: size is {'a': 1}; expected a whole number.",)
    assert "inner" in faults({"name": "x", "inner": 5})[0]


@pytest.mark.parametrize(
    "hint, given, wanted",
    [
        (float, "1e-4", 1e-4),
        (float, 1, 1.0),
        (float | None, None, None),
        (float | None, "2e-3", 2e-3),
        (int, "5", 5),
        (bool, "true", True),
        (tuple[int, int], [16, 32], (16, 32)),
        (tuple[int, int], "16,32", (16, 32)),
        (tuple[str, ...], "text, audio", ("text", "audio")),
        (tuple[str, ...], "text", ("text",)),
        (tuple[Literal["text", "audio"], ...], ["audio"], ("audio",)),
        (tuple[float, ...], [1, "1e-3"], (1.0, 1e-3)),
        (Literal["none", "train"], "none", "none"),
        (int | str, 2, 2),
        (int | str, "auto", "auto"),
        (str | None, None, None),
    ],
)
def test_values_become_what_the_annotation_says(hint, given, wanted):
    found = convert(hint, given)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    "hint, given",
    [
        (int, 5.5),
        (int, "five"),
        (int, True),
        (float, "much"),
        (float, None),
        (float, False),
        (bool, 1),
        (bool, "maybe"),
        (str, ["a"]),
        (tuple[int, int], [16]),
        (tuple[Literal["text", "audio"], ...], ["text", "smell"]),
        (Literal["a", "b"], "c"),
        (int, [1]),
    ],
)
def test_values_that_do_not_fit_are_refused(hint, given):
    with pytest.raises(ValueError):
        convert(hint, given)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("train.rate=1e-4", ("train.rate", "1e-4")),
        ("a=null", ("a", None)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a.b-c=x=y", ("a.b-c", "x=y")),
        ("a=", ("a", "")),
        ("a=[1", ("a", "[1")),
        ("seed=1,2,3", ("seed", "1,2,3")),
    ],
)
def test_overrides_are_read_as_yaml(text, wanted):
    assert parse_override(text) == wanted


@pytest.mark.parametrize("text", ["train.epochs", "=5", "a b=1", "--x"])
def test_what_is_no_override_is_a_sentence(text):
    with pytest.raises(MoodalError, match="expected key=value"):
        parse_override(text)


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2", "just text", "\x00", ""])
def test_files_that_are_no_settings_are_a_sentence(tmp_path, content):
    file = tmp_path / "some.yaml"
    file.write_text(content)
    with pytest.raises(MoodalError, match=r"some\.yaml") as found:
        read_yaml(file)
    assert "\n" not in str(found.value)


def test_a_file_in_another_encoding_or_absent_is_a_sentence(tmp_path):
    (tmp_path / "some.yaml").write_bytes(b"a: \xff\xfe")
    for name in ("some.yaml", "none.yaml"):
        with pytest.raises(MoodalError, match=name):
            read_yaml(tmp_path / name)


RICH = {
    "train.rate": "1e-4",
    "train.clip": None,
    "train.groups.main.rate": 3e-5,
    "train.stages.train.epochs": 2,
    "train.patience": 5,
    "model.modalities": ["text", "audio"],
    "data.root": "somewhere with spaces/ü",
    "data.audio.limit": 40,
    "device.devices": "auto",
    "reader.steps": [12, 16],
}


@pytest.mark.parametrize("overrides", [{}, RICH])
def test_yaml_and_back_gives_an_equal_object(overrides):
    config = configure("synthetic/text", overrides).config
    types = {"model": type(config.model), "reader": type(config.reader)}
    again = resolve(RunConfig, [("file", yaml.safe_load(to_yaml(config)))], types).config
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_settings_cannot_be_changed_after_reading():
    config = configure("synthetic/text").config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 5


def test_the_name_of_a_run_depends_on_what_is_computed_alone():
    one, two = (configure("synthetic/text", {"seed": seed, "device.threads": seed}).config for seed in (1, 2))
    other = configure("synthetic/text", {"train.rate": 9e-4}).config
    without = ("seed", "device.threads")
    assert digest(one, without) == digest(two, without) != digest(other, without)
    assert digest(one) != digest(two)


def test_the_least_nested_of_settings_that_end_alike_is_suggested():
    with pytest.raises(ConfigError, match=r"epochs: no such setting; did you mean 'train.epochs'\?"):
        configure("synthetic/text", {"epochs": 3})


def test_unknown_names_get_a_suggestion():
    with pytest.raises(MoodalError, match=r"There is no method 'txt'; known: .*; did you mean 'text'\?"):
        configure("synthetic/txt")
    with pytest.raises(MoodalError, match=r"There is no corpus 'syntetic'; .*; did you mean 'synthetic'\?"):
        configure("syntetic/text")
    with pytest.raises(MoodalError, match="is no recipe; expected <corpus>/<method>"):
        configure("text")


def test_the_file_may_not_contradict_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("corpus: mosi\n")
    with pytest.raises(MoodalError, match="the settings name mosi/text and the recipe is synthetic/text"):
        configure("synthetic/text", file=file)


def test_a_file_replaces_the_recipes_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7}\n")
    found = configure("synthetic/text", {"train.batch": 3}, file=file)
    assert found.config.train.epochs == 7
    assert found.config.model == METHODS["text"].Config()
    assert found.origins["train.epochs"] == str(file)
    assert found.origins["train.batch"] == "command line"
    assert found.origins["train.rate"] == "default"


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.epochs", -1),
        ("train.batch", 0),
        ("train.accumulate", 0),
        ("train.rate", 0),
        ("train.rate", ".nan"),
        ("train.decay", -1),
        ("train.warmup", 1),
        ("train.clip", 0),
        ("train.average", 1),
        ("train.patience", 0),
        ("train.bucket", 0),
        ("train.eval_batch", 0),
        ("train.save_every", 0),
        ("train.groups.main.rate", 0),
        ("train.stages.train.epochs", -1),
        ("train.augment.noise", -1),
        ("train.augment.time_mask", 1),
        ("data.text.max_tokens", 1),
        ("data.audio.pool", 0),
        ("data.vision.limit", 0),
        ("device.threads", 0),
    ],
)
def test_numbers_out_of_range_are_a_sentence(key, value):
    with pytest.raises(ConfigError) as found:
        configure("synthetic/text", dict([parse_override(f"{key}={value}")]))
    assert len(found.value.faults) == 1
    assert key.rpartition(".")[2] in found.value.faults[0]


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_parses(recipe):
    config = configure(recipe).config
    assert recipe == f"{config.corpus}/{config.method}"
    assert to_plain(config)["train"]["epochs"] >= 1


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_has_a_default_that_fits(method):
    cls = METHODS[method].Config
    known, defaults = leaves(cls, {}), cls()
    for key, hint in known.items():
        if "." not in key:
            assert convert(hint, to_plain(defaults)[key]) == getattr(defaults, key), key
