"""Which command line makes these options? For reports that say how to repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from neurontune_peft.report.adapter import portable


def command_line(name: str, command: Any, *, positional: tuple[str, ...] = ("model",)) -> str:
    """
    The command that gives the same options: what differs from the defaults, without the directories of this machine.

    Args:
        name (`str`): Name of the command.
        command (`Any`): Its dataclass.
        positional (`tuple[str, ...]`, *optional*, defaults to `("model",)`): Fields that are given without a name.

    Returns:
        `str`: For example `neurontune tune user/model --output adapter --counts safety=0.1`.
    """
    words = ["neurontune", name, *(_word(getattr(command, field)) for field in positional)]
    for field in fields(command):
        if field.name not in positional:
            words += _option(field, command, _default(field))
    return shlex.join(words)


def _option(field: Field[Any], command: Any, default: Any) -> Iterator[str]:
    """The words of one field; none where it has its default."""
    value = getattr(command, field.name)
    if is_dataclass(value):
        for inner in fields(value):
            yield from _option(inner, value, getattr(default, inner.name))
    elif value != default:
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield from _words(value)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from (str(key), *_words(part))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _words(part)
    else:
        yield _word(value)


def _word(value: Any) -> str:
    return portable(str(value)) if isinstance(value, str | Path) else str(value)
