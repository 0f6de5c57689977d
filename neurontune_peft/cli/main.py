"""One grammar for all commands; errors are one line on stderr, results go to stdout. Help needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is found, and what it does in one line."""

    module: str
    name: str
    help: str


# The words of a command to its dataclass in `neurontune_peft/cli/MODULE.py`; two words make a group.
COMMANDS = {
    "tune": Command("tune", "Tune", "find neurons, learn their scales, save the adapter, measure it"),
    "attribute": Command("attribute", "Attribute", "score every neuron"),
    "select": Command("select", "Select", "keep the best-scored neurons"),
    "verify": Command("verify", "Verify", "test a list of neurons against random ones"),
    "compare": Command("compare", "Compare", "the adapter beside its controls at equal cost"),
    "evaluate": Command("evaluate", "Evaluate", "measure attack success, refusals and utility"),
    "judge": Command("judge", "JudgeAnswers", "score answers that another engine made"),
    "sweep": Command("sweep", "Sweep", "attack success against its cost over the dial; presets"),
    "certify": Command("certify", "Certify", "the strongest setting whose limits hold with stated confidence"),
    "stress": Command("stress", "StressTest", "what still holds under attacks on the adapter itself"),
    "report": Command("report", "Report", "one page to show, built from the JSON files of a run"),
    "chat": Command("chat", "Chat", "base and tuned answers side by side, with the dial at hand"),
    "prompts convert": Command("prompts", "Convert", "make a prompt set of published files"),
    "prompts validate": Command("prompts", "Validate", "find what is wrong with a prompt set"),
    "prompts show": Command("prompts", "Show", "count and show the prompts of a set"),
    "sites": Command("sites", "Sites", "where the neurons of a model are"),
    "inspect": Command("inspect", "Inspect", "what is in an adapter; no model is loaded"),
    "audit": Command("audit", "Audit", "is an adapter only scales, how strong, and does it protect"),
    "export": Command("export", "Export", "exact LoRA, IA3, GGUF, Ollama or merged checkpoint"),
    "compose": Command("compose", "Compose", "several adapters into one"),
    "diff": Command("diff", "Diff", "what differs between two adapters or reports"),
    "prune": Command("prune", "Prune", "keep fewer neurons of an adapter"),
    "push": Command("push", "Push", "put an adapter with its card on the Hub"),
    "doctor": Command("doctor", "Doctor", "versions, devices and known conflicts"),
}

PROGRAM = "neurontune"
HELP = ("-h", "--help")
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def main(args: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        args (`Sequence[str]`, *optional*): The words after the program's name; those of the process by default.

    Returns:
        `int`: Exit code: 0 when all went well, 2 when the call or its files were wrong, 130 when it was interrupted.

    Raises:
        SystemExit: From a command: with 1 when what it checks does not hold. From the parser: with 0 after help, with
            2 for words that it does not know.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        return _run(words)
    except KeyboardInterrupt as error:
        print(f"{PROGRAM}: {error or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2


def overview(group: str = "") -> str:
    """
    The help of the program, or of a group of commands.

    Args:
        group (`str`, *optional*): First word of the commands to list.
    """
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    longest = max(map(len, names))
    return "\n".join(
        [
            f"usage: {PROGRAM} {f'{group} ' if group else ''}COMMAND [OPTIONS]",
            "",
            "Neuron-level safety tuning for causal language models.",
            "",
            *(f"  {name.ljust(longest)}  {COMMANDS[name].help}" for name in names),
            "",
            f"`{PROGRAM} COMMAND --help` lists a command's options, `{PROGRAM} --version` the version.",
            "Exit codes: 0 fine, 1 a check failed, 2 wrong use. Results go to stdout, messages to stderr.",
            f"Shell completion: {PROGRAM} {COMPLETION[0]} bash (or zsh, tcsh)",
            "",
            f"Example: {PROGRAM} tune user/chat-model --output adapter",
        ]
    )


def _run(words: list[str]) -> int:
    if not words:
        print(overview(), file=sys.stderr)
        return 2
    if words[0] in HELP:
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"{PROGRAM} {_version()}")
        return 0
    if words[0].split("=")[0] in COMPLETION:
        return _completion(words)
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if words[0] in groups and (len(words) == 1 or words[1] in HELP):
        print(overview(words[0]), file=sys.stdout if words[1:] else sys.stderr)
        return 0 if words[1:] else 2
    length = 2 if words[0] in groups else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        raise ValueError(_unknown(name))
    # Only now: these load tyro, and the command loads torch.
    from neurontune_peft.cli.calls import run

    return run(name, _class(name), words[length:])


def _class(name: str) -> type:
    command = COMMANDS[name]
    found: type = getattr(import_module(f"neurontune_peft.cli.{command.module}"), command.name)
    return found


def _version() -> str:
    try:
        return version("neurontune-peft")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1)
    expected = f"'{near[0]}'" if near else f"one of {', '.join(COMMANDS)}"
    return f"got command '{name}'; expected {expected}; see {PROGRAM} --help"


def _completion(words: list[str]) -> int:
    from neurontune_peft.cli.calls import complete

    complete({name: _class(name) for name in COMMANDS}, words)
    return 0
