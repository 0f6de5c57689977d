"""What the benchmarks share: the machine and versions they ran on, and medians of interleaved repeats."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="small shapes and few repeats: does it run at all?")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    return options


def set_up(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set the threads."""
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    return given


def print_header(title: str) -> None:
    """Print the title, the machine and the versions."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "neurontune-peft"))
    print(f"## {title}\n")
    print(f"{cpu}; {device}; {torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}\n")


def interleaved_medians(
    cases: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> dict[str, float]:
    """
    Median time of each case in seconds.

    The cases take turns, so that a change of the machine's speed meets all of them alike.
    """
    for _ in range(warmup):
        for run in cases.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
