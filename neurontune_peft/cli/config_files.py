"""
Options in a YAML file: what `--config` reads, and the run.yaml that stands beside each output.

A key is the name of an option as on the command line, with `_` or `-`. Paths are relative to the file, so that it
means the same wherever it is read, and it holds neither absolute paths nor names of users.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from neurontune_peft.checks import write_atomically

NAME = "run.yaml"
MAX_BYTES = 1 << 20
# Options that name a file, a directory or something on the Hub, though their type is text.
PLACES = {"model", "prompts", "adapter", "other", "chat_template", "base", "attacks", "licence", "tuned_on"}


def read(file: Path, name: str, command: type, extended: type) -> Any:
    """
    Make a command from a file. Required options that are not in the file are left for the command line.

    Args:
        file (`Path`): YAML file with one mapping.
        name (`str`): The command that it shall be for.
        command (`type`): Its dataclass.
        extended (`type`): The same with further options that have defaults: what is made.

    Returns:
        The command, with `tyro.MISSING` in place of required options that are not there.

    Raises:
        ValueError: Names the file and the option.
    """
    given = _mapping(file)
    meant = given.pop("command", name)
    if meant != name:
        raise ValueError(f"got {file}, made by '{meant}'; expected options of '{name}'; run neurontune {meant}")
    known = flat(command)
    values: dict[str, Any] = {}
    for key, value in given.items():
        option = str(key).replace("-", "_")
        if option not in known:
            near = get_close_matches(option, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"see neurontune {name} --help"
            raise ValueError(f"got option '{key}' in {file}; expected options of '{name}'; {advice}")
        try:
            values[option] = _converted(known[option], value, file.parent)
        except TypeError as error:
            raise ValueError(f"got {option}={value!r} in {file}; expected {error}; correct it") from None
    return _made(extended, values)


def write_beside(name: str, command: Any) -> None:
    """
    Write all options of a command that has run as run.yaml into its output directory, or beside its output file.

    The output itself is left out, so that a repetition has to name a new one. Commands without an output leave none.

    Args:
        name (`str`): The command as the user wrote it.
        command: Its dataclass.
    """
    output = {one.name: getattr(command, one.name) for one in fields(command)}.get("output")
    if not isinstance(output, Path) or not output.exists():
        return
    file = output / NAME if output.is_dir() else output.with_name(f"{output.name}.{NAME}")
    options = as_options(command, file.parent)
    head = f"# The options of one run. To repeat it: neurontune {name} --config {file.name} --output NEW\n"
    body = yaml.safe_dump({"command": name, **options}, sort_keys=False, allow_unicode=True, width=119)
    write_atomically(file, head + body)


def as_options(command: Any, directory: Path) -> dict[str, Any]:
    """
    All options of a command but its output, as YAML types; what has no value yet is left out.

    Args:
        command: Its dataclass.
        directory (`Path`): Where the file will stand, from which paths are seen.
    """
    places = _places(type(command))
    return {
        option: _plain(value, directory, place=option in places)
        for option, value in _values(command)
        if option != "output" and value is not tyro.MISSING
    }


def _mapping(file: Path) -> dict[Any, Any]:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise ValueError(f"got config '{file}'; expected a YAML file of at most {MAX_BYTES:,} bytes; correct the name")
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"got {file}, which is no YAML ({reason}); expected 'option: value' lines") from None
    if not isinstance(given, dict):
        raise ValueError(f"got {file} without a mapping; expected 'option: value' lines; correct the file")
    return given


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind) if one.init}


def flat(kind: Any) -> dict[str, Any]:
    """
    Option to type, with the fields of nested dataclasses beside those of the command, as on the command line.

    Args:
        kind (`type`): The dataclass.
    """
    found: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        found |= flat(hint) if is_dataclass(hint) else {name: hint}
    return found


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """An instance with these values; what is not given has its default or is `tyro.MISSING`."""
    arguments: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        if name in values:
            arguments[name] = values[name]
        elif is_dataclass(hint):
            given = {option: values[option] for option in flat(hint) if option in values}
            if given:
                arguments[name] = replace(_default(kind, name), **given)
        elif _default(kind, name) is tyro.MISSING:
            arguments[name] = tyro.MISSING
    return kind(**arguments)


def _default(kind: type, name: str) -> Any:
    one = next(one for one in fields(kind) if one.name == name)
    if one.default_factory is not MISSING:
        return one.default_factory()
    return tyro.MISSING if one.default is MISSING else one.default


def _converted(hint: Any, value: Any, directory: Path) -> Any:
    """
    A YAML value as the type of an option.

    Raises:
        TypeError: Its text is what was expected.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _converted(inner[0], value, directory)
    if origin in (Union, types.UnionType):
        return _first_that_fits(inner, value, directory)
    if origin is Literal:
        return _checked(value in inner and type(value) in {type(one) for one in inner}, value, f"one of {list(inner)}")
    if origin is list:
        return list(_tuple((inner[0], ...), value, directory))
    if origin is tuple:
        return _tuple(inner, value, directory)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _checked(isinstance(value, dict), value, "a mapping")
        return {key: _converted(inner[1], one, directory) for key, one in value.items()}
    if hint is Path:
        return Path(_found(_checked(isinstance(value, str), value, "a path"), directory))
    if hint is str:
        text = _checked(isinstance(value, str), value, "text (in quotes where it looks like a number)")
        kind, path = _parts(text)
        local = path.startswith(("./", "../", "~/")) or path in (".", "..")
        return f"{kind}{_found(path, directory)}" if local else text
    if hint is float:
        return _number(value)
    if hint is type(None):
        return _checked(value is None, value, "null")
    return _checked(type(value) is hint, value, {bool: "true or false", int: "a whole number"}.get(hint, str(hint)))


def _first_that_fits(kinds: Sequence[Any], value: Any, directory: Path) -> Any:
    reasons = []
    for kind in sorted(kinds, key=lambda kind: kind is str):  # text last: "auto" may be a word of its own
        try:
            return _converted(kind, value, directory)
        except TypeError as error:
            reasons.append(str(error))
    raise TypeError(" or ".join(reasons))


def _tuple(inner: Sequence[Any], value: Any, directory: Path) -> tuple[Any, ...]:
    values = _checked(isinstance(value, list | tuple), value, "a list, such as [a, b]")
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_converted(inner[0], one, directory) for one in values)
    _checked(len(values) == len(inner), value, f"a list of {len(inner)}")
    return tuple(_converted(kind, one, directory) for kind, one in zip(inner, values, strict=True))


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:  # YAML 1.1 takes 1e-5 for text
        return float(value) if isinstance(value, str) else _checked(False, value, "a number")
    except ValueError:
        raise TypeError("a number") from None


def _checked(right: bool, value: Any, expected: str) -> Any:
    if not right:
        raise TypeError(expected)
    return value


def _found(text: str, directory: Path) -> str:
    """A path of the file, from here: relative where it lies below the working directory, as users write it."""
    path = os.path.normpath(Path.cwd() / directory / Path(text).expanduser())
    below = os.path.relpath(path)
    return path if below.startswith("..") else below


def _parts(text: str) -> tuple[str, str]:
    """What comes before a path where a word says what it is, as in `classifier:../model`, and the path."""
    kind, colon, path = text.partition(":")
    named = kind.isidentifier() and len(kind) > 1 and not path.startswith("//")  # neither a drive nor an address
    return (f"{kind}{colon}", path) if colon and named else ("", text)


def _values(command: Any) -> Iterator[tuple[str, Any]]:
    for name, hint in _hints(type(command)).items():
        value = getattr(command, name)
        yield from _values(value) if is_dataclass(hint) else [(name, value)]


def _places(kind: type) -> set[str]:
    """Options that are written as places when there is such a file: positional ones and those known by name."""
    hints = get_type_hints(kind, include_extras=True)
    return PLACES | {name for name, hint in hints.items() if tyro.conf.Positional in get_args(hint)[1:]}


def _plain(value: Any, directory: Path, *, place: bool) -> Any:
    """An option as YAML types."""
    if isinstance(value, Path):
        return _portable(value, directory)
    if isinstance(value, str):
        kind, path = _parts(value)
        known = os.path.isabs(path) or (place and Path(value).exists())
        return f"{kind}{_portable(Path(path), directory)}" if known else value
    if isinstance(value, Mapping):
        return {key: _plain(one, directory, place=place) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, directory, place=place) for one in value]
    return value


def _portable(path: Path, directory: Path) -> str:
    """A path as seen from a directory; `~` stands for the user's own directory when the way enters it."""
    target, start, home = path.absolute(), directory.absolute(), Path.home()
    if target.is_relative_to(home) and not start.is_relative_to(home):
        return f"~/{target.relative_to(home).as_posix()}"
    relative = Path(os.path.relpath(target, start)).as_posix()
    return relative if relative.startswith("..") or relative == "." else f"./{relative}"
