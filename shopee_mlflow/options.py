"""Options: dataclass fields with a help text, allowed values and a role."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
# A number that may be auto has this type annotation.
_AUTO, _OR_AUTO = "auto", " | str"
# Former option names and their new ones.
RENAMED = {"top_k": "largest_groups", "activations": "activation_dtype"}


class Role(Enum):
    """What an option affects: whether a resumed run may change it, and a search may vary it.

    A resumed run keeps all options except those of SETUP. A study is identified by its LEARNING
    and DATA options.
    """

    LEARNING = "what is learned; can be searched"
    DATA = "the photos, or how results are judged: the same for all trials of a search"
    RECORD = "how results are stored; fixed for a run, no part of the result"
    SETUP = "where things are and how to compute; may differ when a run is resumed"


def option(
    default: Any,
    help: str,
    role: Role = Role.LEARNING,
    *,
    choices: Iterable[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    former: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field with metadata for the command line and for validation.

    :param former: former values of the option -> their current names.
    """
    metadata = {
        "help": help,
        "role": role,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "former": dict(former or {}),
    }
    return dataclasses.field(default=default, metadata=metadata)


def with_role(cls: type[Any], *roles: Role) -> set[str]:
    """Names of the options that have one of these roles."""
    return {f.name for f in dataclasses.fields(cls) if f.metadata["role"] in roles}


def as_text(value: object) -> str:
    """The canonical text of a value, used in MLflow, in YAML and in messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def allowed(field: dataclasses.Field[Any]) -> str:
    """A description of the values that an option allows."""
    rules = field.metadata
    if rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    kind = value_kind(field)
    if kind == "bool":
        return "true or false"
    if kind == "str":
        return "text"
    low = _bound(rules["minimum"], "at least") or _bound(rules["above"], "above")
    high = _bound(rules["maximum"], "at most") or _bound(rules["below"], "below")
    limits = " and ".join(part for part in (low, high) if part)
    number = f"{'a whole number' if kind == 'int' else 'a number'} {limits}".strip()
    return f"{number}, or {_AUTO}" if _takes_auto(field) else number


def unknown_option(name: str, names: Iterable[str]) -> str:
    """The message for an unknown option: its new or its closest name, then all names."""
    known = sorted(names)
    renamed = RENAMED.get(name.replace("-", "_"))
    if renamed in known:
        return f"{name}: this option is now called {renamed}"
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name}: no such option.{hint} The options are: {', '.join(known)}"


def _bound(value: float | None, words: str) -> str:
    return "" if value is None else f"{words} {value:g}" if value < 1e6 else f"{words} {value:,}"


def value_kind(field: dataclasses.Field[Any]) -> str:
    """The type of an option's values: int, float, bool or str; ``auto`` aside."""
    return str(field.type).removesuffix(_OR_AUTO)


def _takes_auto(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).endswith(_OR_AUTO)


def parse_option(cls: type[Any], name: str, raw: Any) -> Any:
    """Convert a value to the type of its option and check it.

    :raises ValueError: naming the option and its allowed values.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if name not in fields:
        raise ValueError(unknown_option(name, fields))
    field = fields[name]
    try:
        auto = _takes_auto(field) and as_text(raw).strip() == _AUTO
        value = _AUTO if auto else _convert(value_kind(field), raw)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}") from None
    former = field.metadata["former"].get(as_text(raw).lower())
    if former:
        raise ValueError(f"{name}={as_text(raw)}: is now {name}={former}")
    if not _within(value, field.metadata):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}")
    return value


def _convert(kind: str, raw: Any) -> Any:
    if not isinstance(raw, (str, int, float, PurePath)):
        raise ValueError
    text = as_text(raw).strip()
    if kind == "bool":
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if isinstance(raw, bool) and kind != "str":
        raise ValueError
    if kind == "int":
        number = float(text)
        return int(text) if not number.is_integer() or abs(number) >= 2**53 else int(number)
    if kind == "float":
        return float(text)
    if not text:
        raise ValueError
    return text


def _within(value: Any, rules: Mapping[str, Any]) -> bool:
    if rules["choices"]:
        return value in rules["choices"]
    if isinstance(value, (str, bool)):
        return True
    return (
        math.isfinite(value)
        and (rules["minimum"] is None or value >= rules["minimum"])
        and (rules["maximum"] is None or value <= rules["maximum"])
        and (rules["above"] is None or value > rules["above"])
        and (rules["below"] is None or value < rules["below"])
    )
