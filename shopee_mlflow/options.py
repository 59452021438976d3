"""What an option is: a dataclass field that knows its help, its allowed values and its text."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
# Former option names and their new ones.
RENAMED = {"top_k": "largest_groups", "activations": "activation_dtype"}


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with what the command line and the checks need to know about it."""
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
    }
    return dataclasses.field(default=default, metadata=metadata)


def as_text(value: object) -> str:
    """The one spelling of a value: in MLflow, in YAML and in messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def allowed(field: dataclasses.Field[Any]) -> str:
    """The values that an option takes, in words."""
    rules = field.metadata
    if rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    kind = _kind(field)
    if kind == "bool":
        return "true or false"
    if kind == "str":
        return "text"
    low = _bound(rules["minimum"], "at least") or _bound(rules["above"], "above")
    high = _bound(rules["maximum"], "at most") or _bound(rules["below"], "below")
    limits = " and ".join(part for part in (low, high) if part)
    return f"{'a whole number' if kind == 'int' else 'a number'} {limits}".strip()


def unknown_option(name: str, names: Iterable[str]) -> str:
    """The message for a name that no option has: its new or nearest name, then all of them."""
    known = sorted(names)
    renamed = RENAMED.get(name.replace("-", "_"))
    if renamed in known:
        return f"{name}: this option is now called {renamed}"
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name}: no such option.{hint} The options are: {', '.join(known)}"


def _bound(value: float | None, words: str) -> str:
    return "" if value is None else f"{words} {value:g}" if value < 1e6 else f"{words} {value:,}"


def _kind(field: dataclasses.Field[Any]) -> str:
    return str(field.type)


def parse_option(cls: type[Any], name: str, raw: Any) -> Any:
    """A value for one option, read where it is text.

    :raises ValueError: naming the option and what it takes.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if name not in fields:
        raise ValueError(unknown_option(name, fields))
    field = fields[name]
    try:
        value = _convert(_kind(field), raw)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}") from None
    if not _within(value, field.metadata):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}")
    return value


def _convert(kind: str, raw: Any) -> Any:
    if isinstance(raw, (list, dict)) or raw is None:
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
