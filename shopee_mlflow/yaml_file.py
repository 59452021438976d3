"""Read options from a YAML file that is not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

# A typical file has a few hundred bytes.
_MAX_YAML_BYTES = 64 * 2**10


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping of option names to values in a YAML file.

    The file is not trusted. Python tags, aliases and files of more than 64 KiB are refused: a few
    bytes of aliases can expand to gigabytes.

    :raises ConfigError: when the file cannot be read or is not such a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_YAML_BYTES + 1)
        if len(text) > _MAX_YAML_BYTES:
            raise ConfigError([f"config={path}: is larger than {_MAX_YAML_BYTES:,} bytes"])
        content = yaml.load(text.decode("utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            [f"config={path}: cannot be read ({error.strerror}), relative to {Path.cwd()}"]
        ) from error
    except RecursionError as error:
        raise ConfigError([f"config={path}: is not valid YAML: nested too deeply"]) from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: not UTF-8, a date such as 2026-02-31, or a number of thousands of digits.
        raise ConfigError([f"config={path}: is not valid YAML: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"config={path}: must hold lines of 'option: value'"])
    return {str(name): value for name, value in content.items()}


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{event.anchor}) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)
