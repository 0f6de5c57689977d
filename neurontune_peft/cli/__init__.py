"""The command line: `neurontune tune | evaluate | inspect | sites`."""

from neurontune_peft.cli.main import main

__all__ = ["main"]
