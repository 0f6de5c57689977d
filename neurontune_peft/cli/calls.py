"""From the words of a call to a command that runs: what all commands have in common is done here, once."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Union, runtime_checkable

import tyro

from neurontune_peft.cli import config_files

PROGRAM = "neurontune"
# Option names stand alone: `--steps`, not `--command.training.steps`.
GRAMMAR = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
# Commands whose cost can be estimated, see `estimate.COMMANDS`.
ESTIMATED = ("tune", "attribute", "evaluate", "compare")
# A command with more options than this shows them without their texts, so that its help is read at all.
SCREEN = 20
# Options of every command that has no field of that name: name, type, help.
COMMON: tuple[tuple[str, Any, str], ...] = (
    ("config", Path | None, "YAML file with options of this command, such as a run.yaml; what is given here wins."),
    ("json", bool, "Print one JSON object for machines; what is meant for people goes to stderr."),
    ("dry_run", bool, "Estimate time and memory from two batches, and write nothing."),
)


class Call(NamedTuple):
    """A command with its options, and the common options beside it."""

    name: str
    command: Any
    json: bool
    dry_run: bool


@runtime_checkable
class Result(Protocol):
    """What a command may return: a value that knows itself as JSON types."""

    def as_dict(self) -> dict[str, Any]:
        """The value as JSON types."""


class CheckFailed(SystemExit):
    """
    What a command raises when what it checks does not hold: exit code 1, and the result all the same.

    Args:
        result (`Result`): What was found.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(1)
        self.result = result


def run(name: str, command: type, words: Sequence[str]) -> int:
    """
    Parse the words that follow a command's name, and run it.

    Args:
        name (`str`): The command as the user wrote it.
        command (`type`): Its dataclass; its method `run` prints the result and may return a mapping or a [`Result`].
        words (`Sequence[str]`): What followed the name.

    Returns:
        `int`: Exit code.

    Raises:
        ValueError: When an option is wrong.
        SystemExit: As the parser or the command says.
    """
    call = parse(name, command, words)
    import_module("neurontune_peft.tuner")  # registers the method with PEFT, whatever the command loads
    work: Callable[[], Any] = partial(_estimated, call) if call.dry_run else call.command.run
    code = _run_for_machines(call, work) if call.json else _run_for_people(work)
    if not call.dry_run and code < 2:
        config_files.write_beside(call.name, call.command)
    if code:
        raise SystemExit(code)
    return code


def parse(name: str, command: type, words: Sequence[str]) -> Call:
    """
    Options from the command line and, where `--config` names a file, from there.

    Raises:
        ValueError: When the file is wrong.
        SystemExit: When a word is unknown, and after help.
    """
    extended, common = _extended(name, command)
    text = (inspect.getdoc(command) or "").split("Args:")[0]
    description, _, example = text.partition("Example: ")
    options: dict[str, Any] = {"prog": f"{PROGRAM} {name}", "description": description}
    file = _value_of("--config", words) if "config" in common else None
    if file is not None:
        options["default"] = config_files.read(Path(file), name, command, extended)
    short = len(config_files.flat(command)) > SCREEN
    try:
        parsed: Any = tyro.cli(extended, args=words, config=GRAMMAR, compact_help=short, **options)
    except SystemExit as end:
        if not end.code and example:  # this was help
            print(f"`{PROGRAM} {name} --help-verbose` explains each option.\n" if short else "", end="")
            print(f"Example: {example.strip()}")
        raise
    given = {option: getattr(parsed, option) for option in common}
    made = command(**{one.name: getattr(parsed, one.name) for one in fields(command) if one.init})
    return Call(name, made, given.get("json", False), given.get("dry_run", False))


def complete(commands: Mapping[str, type], words: Sequence[str]) -> None:
    """
    Print or write the completion of a shell for all commands.

    Args:
        commands (`Mapping[str, type]`): Words of a command to its dataclass.
        words (`Sequence[str]`): tyro's option and its values.
    """
    kinds = [Annotated[_extended(name, kind)[0], tyro.conf.subcommand(name)] for name, kind in commands.items()]
    tyro.cli(Union[tuple(kinds)], args=words, prog=PROGRAM, config=GRAMMAR)  # noqa: UP007 - made from a list


def _extended(name: str, command: type) -> tuple[type, list[str]]:
    """The command's class with the common options that it has not itself, and the names of these."""
    own = {one.name for one in fields(command)}
    options: list[Any] = []
    for option, kind, text in COMMON:
        if option not in own and (option != "dry_run" or name in ESTIMATED):
            default = None if option == "config" else False
            options.append((option, Annotated[kind, tyro.conf.arg(help=text)], field(default=default, kw_only=True)))
    extended = make_dataclass("Options", options, bases=(command,), frozen=True)
    return extended, [option for option, _, _ in options]


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value that an option is given; the parser sees to what is wrong with it."""
    found = None
    for word, after in zip(words, [*words[1:], None], strict=False):
        if word == option:
            found = after
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _estimated(call: Call) -> Result:
    from neurontune_peft.cli import estimate  # loads torch and the pipeline, which not every command needs

    result = estimate.measure(call.name, call.command)
    print(result)
    return result


def _run_for_people(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as end:
        return _code(end)
    return 0


def _run_for_machines(call: Call, work: Callable[[], Any]) -> int:
    """Print one JSON object on stdout, whatever the command prints; that goes to stderr."""
    text, result, error, code = io.StringIO(), None, None, 0
    try:
        with contextlib.redirect_stdout(text):
            result = work()
    except CheckFailed as end:
        code, result = 1, end.result
    except SystemExit as end:
        code = _code(end)
    except (ValueError, OSError) as wrong:
        code, error = 2, str(wrong)
        print(f"{PROGRAM}: {wrong}", file=sys.stderr)
    sys.stderr.write(text.getvalue())
    shown: dict[str, Any] = {"command": call.name, "exit_code": code}
    output = {one.name: getattr(call.command, one.name) for one in fields(call.command)}.get("output")
    if error is not None:
        shown["error"] = error
    elif output is not None and not call.dry_run:
        shown["output"] = str(output)
    shown["result"] = result.as_dict() if isinstance(result, Result) else result
    if result is None and error is None:
        shown["text"] = text.getvalue()
    print(json.dumps(shown, indent=1, ensure_ascii=False, default=str))
    return code


def _code(end: SystemExit) -> int:
    """An exit code as a number; a text is a message, as in Python."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
