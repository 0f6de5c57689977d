"""
The program `neurontune`.

It stands beside the package, not in it, so that the package can tell that it is loaded as a program and need not load
torch before it is known which command is called (see the end of `neurontune_peft/__init__.py`).
"""


def main() -> int:
    """Run the command line with the words of this process."""
    from neurontune_peft.cli import main as run

    return run()
