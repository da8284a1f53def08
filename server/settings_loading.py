"""Where settings come from: flags, environment, a YAML file; every value is checked.

A key has one flat name everywhere: `--port 8080` = `SIGHTLINE_PORT=8080` = `port: 8080` in the
YAML file, in that order of strength.
"""

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from server.errors import SettingsError
from server.settings import CODECS, GROUPS, SECRET_LENGTH_AT_LEAST, Settings

ENVIRONMENT_PREFIX = "SIGHTLINE_"

Group = TypeVar("Group")


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table of settings, for help texts and documents."""

    group: str
    name: str
    kind: type[Any]
    is_list: bool
    default: Any
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...] | None
    is_secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def range_text(self) -> str:
        """What it may be, for messages and documents."""
        if self.choices:
            return ("any of " if self.is_list else "one of ") + ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return {bool: "true or false"}.get(self.kind, "text")


def _keys() -> tuple[Key, ...]:
    rows = []
    for group, group_type in GROUPS:
        hints = typing.get_type_hints(group_type)
        for item in dataclasses.fields(group_type):
            hint = hints[item.name]
            is_list = isinstance(hint, types.GenericAlias) or typing.get_origin(hint) is tuple
            choices = item.metadata["choices"]
            rows.append(
                Key(
                    group=group,
                    name=item.name,
                    kind=str if is_list else hint,
                    is_list=is_list,
                    default=item.default,
                    help=item.metadata["help"],
                    low=item.metadata["low"],
                    high=item.metadata["high"],
                    choices=tuple(choices) if choices else None,
                    is_secret=item.metadata["secret"],
                )
            )
    return tuple(rows)


# As browsers take it; a page given another one could not begin a call.
_ICE_SERVER = re.compile(r"stuns?:[^\s/?#]+|turns?:[^\s/?#]+(\?transport=(udp|tcp))?")

KEYS = _keys()
_KEYS_BY_NAME = {row.name: row for row in KEYS}


def parse_value(row: Key, value: object, origin: str) -> Any:
    """`value` as the key's type, or a SettingsError that names key, value, range and origin."""
    if row.is_list:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise SettingsError(f"{origin}: {row.name}: {_shown(row, value)} is not a list")
        texts = tuple(str(part).strip() for part in parts if str(part).strip())
        for text in texts:
            _check_choice(row, text, origin)
        return texts
    if row.kind is bool:
        return _parse_bool(row, value, origin)
    if row.kind is str:
        if isinstance(value, dict | list):
            raise SettingsError(f"{origin}: {row.name}: {_shown(row, value)} is not text")
        # YAML reads a bare `on` or `off` as true or false.
        words = {None: "", True: "on", False: "off"}
        text = words[value] if value is None or isinstance(value, bool) else str(value)
        _check_choice(row, text, origin)
        return text
    return _parse_number(row, value, origin)


def _shown(row: Key, value: object) -> str:
    return "what was given" if row.is_secret else repr(value)


def _parse_bool(row: Key, value: object, origin: str) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise SettingsError(f"{origin}: {row.name}: {value!r} is not true or false")


def _parse_number(row: Key, value: object, origin: str) -> int | float:
    try:
        number = row.kind(str(value).strip())
    except ValueError:
        number = None
    if number is None or isinstance(value, bool) or number != number:
        noun = "a whole number" if row.kind is int else "a number"
        raise SettingsError(f"{origin}: {row.name}: {value!r} is not {noun}, {row.range_text}")
    if (row.low is not None and number < row.low) or (row.high is not None and number > row.high):
        raise SettingsError(f"{origin}: {row.name}: {value} is not within {row.range_text}")
    return typing.cast("int | float", number)


def _check_choice(row: Key, text: str, origin: str) -> None:
    if row.choices and text not in row.choices:
        raise SettingsError(f"{origin}: {row.name}: {text!r} is not {row.range_text}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every key; all default to None so that weaker sources can fill them."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    for group, group_type in GROUPS:
        section = parser.add_argument_group(group, group_type.__doc__)
        for row in (item for item in KEYS if item.group == group):
            default = ",".join(row.default) if row.is_list else row.default
            section.add_argument(
                row.flag,
                dest=row.name,
                action="append" if row.is_list else "store",
                metavar=row.name.upper().rsplit("_", 1)[-1],
                help=f"{row.help} ({row.range_text}; default {default!s})".replace("%", "%%"),
            )


def load_settings(
    arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Flags over environment over file over defaults; every value checked whatever its source."""
    values: dict[str, Any] = {}
    config = arguments.config or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if config:
        values.update(_from_file(Path(config)))
    for row in KEYS:
        if row.variable in environment:
            values[row.name] = parse_value(row, environment[row.variable], row.variable)
        flag_value = getattr(arguments, row.name, None)
        if isinstance(flag_value, list):
            # A flag of a list may be given more than once.
            flag_value = ",".join(flag_value)
        if flag_value is not None:
            values[row.name] = parse_value(row, flag_value, row.flag)
    settings = Settings(**{group: _build(group_type, values) for group, group_type in GROUPS})
    _check_together(settings)
    return settings


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that look like settings and are none. Not refused: Kubernetes makes some."""
    known = {row.variable for row in KEYS} | {ENVIRONMENT_PREFIX + "CONFIG"}
    return sorted(
        name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    )


def _build(group_type: type[Group], values: Mapping[str, Any]) -> Group:
    names = [item.name for item in dataclasses.fields(group_type)]  # type: ignore[arg-type]
    return group_type(**{name: values[name] for name in names if name in values})


class _Loader(yaml.SafeLoader):
    """Takes no key twice, as YAML has it: of two lines for one setting, one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if lines.setdefault(name, line) != line:
                raise yaml.YAMLError(f"{name}: in line {lines[name]} and again in {line}")
        return super().construct_mapping(node, deep)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise SettingsError(f"config: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"config: {path} is not YAML: {_yaml_fault(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"config: {path} is not a list of `key: value` lines")
    values = {}
    for name, value in content.items():
        row = _KEYS_BY_NAME.get(str(name))
        if row is None:
            raise SettingsError(
                f"{path}: {name}: no such setting; `python -m server --help` lists them"
            )
        values[row.name] = parse_value(row, value, str(path))
    return values


def _yaml_fault(error: Exception) -> str:
    """What is wrong and in which line, where the parser knows."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _check_together(settings: Settings) -> None:
    if 0 < len(settings.auth.token_secret) < SECRET_LENGTH_AT_LEAST:
        raise SettingsError(f"token_secret: shorter than {SECRET_LENGTH_AT_LEAST} characters")
    settings.rtc.port_pair()
    settings.server.addresses()
    for url in settings.rtc.ice_servers:
        if not _ICE_SERVER.fullmatch(url):
            raise SettingsError(
                f"ice_servers: {url!r} is not like stun:HOST:PORT or turn:HOST:PORT?transport=udp"
            )
    images = settings.images
    if images.max_image_megapixels > images.image_memory_megapixels:
        raise SettingsError(
            f"max_image_megapixels: {images.max_image_megapixels:g} is above "
            f"image_memory_megapixels: {images.image_memory_megapixels:g}"
        )
    if settings.rtc.bitrate_min_kbps > settings.rtc.bitrate_max_kbps:
        raise SettingsError(
            f"bitrate_min_kbps: {settings.rtc.bitrate_min_kbps} is above bitrate_max_kbps: "
            f"{settings.rtc.bitrate_max_kbps}"
        )
    if not settings.rtc.video_codecs:
        raise SettingsError(f"video_codecs: empty is not any of {', '.join(CODECS)}")
    if settings.session.stale_after_s > settings.session.silent_timeout_s:
        raise SettingsError(
            f"stale_after_s: {settings.session.stale_after_s:g} is above silent_timeout_s: "
            f"{settings.session.silent_timeout_s:g}"
        )
