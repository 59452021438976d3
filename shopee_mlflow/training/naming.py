"""Name the run of a training by its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ..config import TrainConfig
from ..data_config import AUTO
from ..options import Role, as_text, with_role

# The longest automatic name of a run; options that do not fit are only counted.
_LONGEST = 100


def run_name(config: TrainConfig, but: Collection[str] = ()) -> str:
    """The name of the run: the option run_name, or the model and the changed options.

    An example is ``effnet_pretrained freeze=features.6 lr=0.05``.

    :param but: options that are left out.
    """
    if config.run_name != AUTO:
        return config.run_name
    changed = [text for text in changed_options(config) if text.partition("=")[0] not in but]
    parts = [config.model, *changed]
    shown = len(parts)
    while len(" ".join(parts[:shown])) > _LONGEST and shown > 1:
        shown -= 1
    more = f" +{len(parts) - shown}" if shown < len(parts) else ""
    return " ".join(parts[:shown]) + more


def changed_options(config: TrainConfig) -> list[str]:
    """``name=value`` of the options that affect the result and differ from their defaults.

    Options of learning are first, followed by options of the data. The model is omitted.
    """
    fields = [
        field
        for role in (Role.LEARNING, Role.DATA)
        for field in dataclasses.fields(config)
        if field.name in with_role(type(config), role) - {"model"}
    ]
    values = {field: getattr(config, field.name) for field in fields}
    return [f"{f.name}={as_text(value)}" for f, value in values.items() if value != f.default]
