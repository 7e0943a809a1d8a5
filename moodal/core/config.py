"""Settings in layers: dataclass defaults, then a recipe in YAML, then ``a.b=c``. All faults are reported at once.

jsonargparse converts and checks each value against its annotation; added here are the layers, the origin of each
value, the collection of faults, and "did you mean".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moodal.core.errors import ConfigError, MoodalError, did_you_mean

#: A layer: where it comes from, and its values (nested or with dotted keys).
Layer = tuple[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A configuration object and, for every dotted key, its value and where it came from."""

    config: Any
    origins: Mapping[str, str]


def leaves(cls: type, substitutes: Mapping[str, type], prefix: str = "") -> dict[str, Any]:
    """{dotted key: annotation} of a dataclass, nested ones walked; ``Mapping[str, X]`` gives the key part ``*``.

    ``substitutes`` types the fields annotated ``Any`` of the outermost class (``model``, ``reader``).
    """
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = substitutes.get(field.name, hints[field.name])
        key = f"{prefix}{field.name}"
        inner = _inner(hint)
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, {}, f"{key}.")  # type: ignore[arg-type]
        elif inner is not None:
            found |= leaves(inner, {}, f"{key}.*.")
        else:
            found[key] = hint
    return found


def _inner(hint: Any) -> type | None:
    """X of ``Mapping[str, X]`` where X is a dataclass."""
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and isinstance(arguments[1], type) and dataclasses.is_dataclass(arguments[1]):
        return arguments[1]
    return None


def flatten(values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a mapping that is itself a value of a known key stays whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and _match(key, known) is None:
            flat |= flatten(value, known, f"{key}.")
        else:
            flat[key] = value
    return flat


def _match(key: str, known: Mapping[str, Any]) -> Any | None:
    """The annotation of ``key``, where ``*`` of a known key stands for any one name."""
    if key in known:
        return known[key]
    for pattern, hint in known.items():
        if "*" in pattern and re.fullmatch(re.escape(pattern).replace(r"\*", r"[\w-]+"), key):
            return hint
    return None


def resolve(cls: type, layers: Sequence[Layer], substitutes: Mapping[str, type]) -> Resolved:
    """Merge the layers (later wins) into one ``cls``. Raises ``ConfigError`` with every fault found."""
    known = leaves(cls, substitutes)
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins = {key: "default" for key in known if "*" not in key}
    for origin, layer in layers:
        for key, value in flatten(layer, known).items():
            hint = _match(key, known)
            if hint is None:
                faults.append(f"{origin}: {key}: no such setting{_suggest(key, known)}")
                continue
            try:
                values[key], origins[key] = convert(hint, value), origin
            except ValueError:
                faults.append(f"{origin}: {key} is {value!r}; expected {describe(hint)}.")
    config = _construct(cls, values, substitutes, "", faults, origins)
    if faults:
        raise ConfigError(faults)
    return Resolved(config, origins)


def _suggest(key: str, known: Mapping[str, Any]) -> str:
    """Name the nearest full key, else the nearest key that ends alike."""
    near = did_you_mean(key, known)
    if near:
        return near
    nearest_last = sorted(known, key=lambda full: -full.count("."))  # of keys that end alike the least nested one stays
    last = {full.rpartition(".")[2]: full for full in nearest_last}
    name = key.rpartition(".")[2]
    match = did_you_mean(name, last)
    return f"; did you mean '{last[match.split(chr(39))[1]]}'?" if match else "."


def convert(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` asks, through jsonargparse. Raises ``ValueError`` where it does not fit."""
    from jsonargparse import (
        ArgumentError,
        ArgumentParser,
    )

    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, str):
        value = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    if hint is bool and not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        raise ValueError(value)
    if hint in (int, float) and isinstance(value, bool):
        raise ValueError(value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parsed = parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError, ValueError) as fault:
        raise ValueError(str(fault)) from fault
    if parsed is None and type(None) not in typing.get_args(hint):
        raise ValueError(value)
    return tuple(parsed) if origin is tuple else parsed


def describe(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else describe(part) for part in arguments)
    if origin is tuple:
        return f"a list of {describe(arguments[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, str(hint))


def _construct(
    cls: type,
    values: Mapping[str, Any],
    substitutes: Mapping[str, type],
    prefix: str,
    faults: list[str],
    origins: Mapping[str, str],
) -> Any:
    """Build ``cls`` from dotted values, collecting what its ``__post_init__`` complains of."""
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = substitutes.get(field.name, hints[field.name]) if not prefix else hints[field.name]
        key, inner = f"{prefix}{field.name}", _inner(hint)
        if dataclasses.is_dataclass(hint):
            given[field.name] = _construct(hint, values, substitutes, f"{key}.", faults, origins)  # type: ignore[arg-type]
        elif inner is not None:
            names = sorted({k[len(key) + 1 :].split(".")[0] for k in values if k.startswith(f"{key}.")})
            given[field.name] = {
                n: _construct(inner, values, substitutes, f"{key}.{n}.", faults, origins) for n in names
            }
        elif key in values:
            given[field.name] = values[key]
    try:
        return cls(**given)
    except MoodalError as fault:
        faults.append(f"{prefix.rstrip('.') or 'settings'}: {fault}")
        return None
    except TypeError as fault:
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in given and _required(f)]
        faults.append(f"{prefix}{', '.join(missing)}: required and not given." if missing else f"{prefix}: {fault}")
        return None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def parse_override(text: str) -> tuple[str, Any]:
    """``a.b=c`` as (key, value); the value is read as YAML. Raises ``MoodalError`` if there is no ``=``."""
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.\-]+", key):
        raise MoodalError(f"'{text}' is not a setting; expected key=value, for example train.epochs=5.")
    try:
        return key, yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return key, value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; a sentence if it is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MoodalError(f"{path} does not exist; expected a YAML file of settings there.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise MoodalError(f"{path} is not valid YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(value, dict):
        raise MoodalError(f"{path} holds {type(value).__name__}; expected a mapping of settings.")
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists that YAML and JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A configuration as YAML that :func:`resolve` reads back to an equal object."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def digest(config: Any, without: Sequence[str] = ()) -> str:
    """Eight hex digits that name a configuration, some dotted keys left out."""
    plain = to_plain(config)
    for key in without:
        *path, last = key.split(".")
        place = plain
        for part in path:
            place = place[part]
        place.pop(last, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
