"""How long do help and the import take? Medians of fresh processes: seconds on the clock, and of the CPU."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from common import parser, print_header, print_table, set_up

from neurontune_peft.cli.main import COMMANDS

MODULE = "python -m neurontune_peft"
CASES = {
    "python, doing nothing": ["-c", "pass"],
    f"{MODULE} --help": ["-m", "neurontune_peft", "--help"],
    **{f"{MODULE} {name} --help": ["-m", "neurontune_peft", *name.split(), "--help"] for name in COMMANDS},
    "import peft": ["-c", "import peft"],
    "import neurontune_peft": ["-c", "import neurontune_peft"],
    "import neurontune_peft after import peft": [
        "-c",
        "import peft, time; start = time.perf_counter(), time.process_time(); import neurontune_peft; "
        "print(time.perf_counter() - start[0], time.process_time() - start[1])",
    ],
}


def seconds(words: list[str]) -> tuple[float, float]:
    """Time and CPU time of one process, or what it says itself."""
    start, before = time.perf_counter(), _cpu()
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start, _cpu() - before
    if "start" not in words[-1]:
        return whole
    clock, cpu = map(float, done.stdout.split())
    return clock, cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    given = set_up(parser(__doc__))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(1 if given.quick else 5):  # in turns, so that a change of the machine's speed meets all alike
        for name, words in CASES.items():
            times[name].append(seconds(words))
    print_header("Start-up: `python benchmarks/startup.py`")
    rows = [
        [name, *(f"{statistics.median(part):.2f}" for part in zip(*found, strict=True))]
        for name, found in times.items()
    ]
    print_table(["", "seconds", "of the CPU"], rows)


if __name__ == "__main__":
    main()
