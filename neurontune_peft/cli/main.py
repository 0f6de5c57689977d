"""One grammar for all commands; errors are one line on stderr, results go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from neurontune_peft.cli.attribute import Attribute
from neurontune_peft.cli.compare import Compare
from neurontune_peft.cli.evaluate import Evaluate
from neurontune_peft.cli.inspect import Inspect
from neurontune_peft.cli.judge import JudgeAnswers
from neurontune_peft.cli.prompts import Prompts
from neurontune_peft.cli.select import Select
from neurontune_peft.cli.sites import Sites
from neurontune_peft.cli.tune import Tune
from neurontune_peft.cli.verify import Verify

Command = (
    Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Attribute, tyro.conf.subcommand("attribute")]
    | Annotated[Select, tyro.conf.subcommand("select")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[JudgeAnswers, tyro.conf.subcommand("judge")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Prompts, tyro.conf.subcommand("prompts")]
    | Annotated[Sites, tyro.conf.subcommand("sites")]
)


def main(args: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        args (`Sequence[str]`, *optional*): The words after the program's name; those of the process by default.

    Returns:
        `int`: Exit code, 0 when all went well and 2 when the call or its files were wrong.
    """
    command: Any = tyro.cli(
        Command,
        args=args,
        prog="neurontune",
        description="Neuron-level safety tuning for causal language models.",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    try:
        command.run()
    except (ValueError, OSError) as error:
        print(f"neurontune: {error}", file=sys.stderr)
        return 2
    return 0
