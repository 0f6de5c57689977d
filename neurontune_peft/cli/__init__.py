"""The command line: `neurontune COMMAND …`, one module per command. Importing it loads no command and no torch."""

from neurontune_peft.cli.main import main

__all__ = ["main"]
