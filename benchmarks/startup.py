"""How long do help and the import take? Medians of fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import parser, print_header, set_up

from neurontune_peft.cli.main import COMMANDS

MODULE = "python -m neurontune_peft"
CASES = {
    "python, doing nothing": ["-c", "pass"],
    "python -m neurontune_peft --help": ["-m", "neurontune_peft", "--help"],
    **{f"{MODULE} {name} --help": ["-m", "neurontune_peft", *name.split(), "--help"] for name in COMMANDS},
    "import peft": ["-c", "import peft"],
    "import neurontune_peft": ["-c", "import neurontune_peft"],
    "import neurontune_peft after import peft": [
        "-c",
        "import peft, time; start = time.perf_counter(); import neurontune_peft; print(time.perf_counter() - start)",
    ],
}


def seconds(words: list[str]) -> float:
    """Time of one process, or what it says itself."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start
    return float(done.stdout) if "start" in words[-1] else whole


def main() -> None:
    """Measure and print."""
    given = set_up(parser(__doc__))
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(1 if given.quick else 5):  # in turns, so that a change of the machine's speed meets all alike
        for name, words in CASES.items():
            times[name].append(seconds(words))
    print_header("Start-up: `python benchmarks/startup.py`")
    print("|  | seconds |\n|---|---|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.2f} |")


if __name__ == "__main__":
    main()
