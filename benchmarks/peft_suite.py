"""
Run PEFT's own tests for NEURONTUNE and for IA3, side by side, and print what each of them passes.

PEFT's source archive is downloaded from the package index, in the version that is installed, into a folder outside of
the repository. The tests are changed in memory only (`peft_suite_plugin.py`, `peft_suite_stand_ins.py`); models that
they would download are replaced by small random ones under the same names (`peft_suite_models.py`).

    python benchmarks/peft_suite.py [--cache DIR] [--output FILE.md] [-k EXPRESSION] [FILE ...]

Exit status 1: NEURONTUNE fails a case that IA3 passes or skips.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

METHODS = ("IA3", "NEURONTUNE")
# The project's contract names the first five; low_level_api tests state dicts, tuners_utils targets and status.
FILES = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_initialization.py",
    "test_config.py",
    "test_auto.py",
    "test_low_level_api.py",
    "test_tuners_utils.py",
)
# PEFT's tests import these, and hardly any case that runs here uses them. An empty module does for diffusers; it would
# not for scipy, whose presence transformers notices.
INSTALLED = {"attr": "attrs", "parameterized": "parameterized", "scipy": "scipy"}
STUBBED = {"diffusers": "StableDiffusionPipeline"}
REASON_WIDTH = 150


def main() -> int:
    """Download, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("files", nargs="*", default=list(FILES), help="Test files of PEFT. Default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "neurontune_peft" / "peft_suite")
    parser.add_argument("--output", type=Path, help="Write the table here too.")
    parser.add_argument("-k", default="", help="Passed to pytest: only matching tests.")
    options = parser.parse_args()
    start = time.monotonic()
    tests = unpacked_tests(options.cache, version("peft"))
    found = run(tests, options.files, expression=options.k, cache=options.cache)
    found["reports"] = without_lora_alone(found["reports"])
    text = INTRODUCTION + as_markdown(found["reports"], found["left_out"], minutes=(time.monotonic() - start) / 60)
    print(text)
    if options.output:
        options.output.write_text(text)
    return int(bool(only_ours(found["reports"])))


def unpacked_tests(cache: Path, peft_version: str) -> Path:
    """
    PEFT's tests, as published with a version.

    Raises:
        SystemExit: When the archive holds no tests.
    """
    folder = cache / f"peft-{peft_version}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-binary", ":all:", "--no-deps", f"peft=={peft_version}", "--dest", str(cache)]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
        with tarfile.open(cache / f"peft-{peft_version}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{folder.name}/tests/")]
            archive.extractall(cache, members=members, filter="data")
    tests = folder / "tests"
    if not (tests / "testing_common.py").is_file():
        raise SystemExit(
            f"got a source archive of peft {peft_version} without tests; expected some; try another version"
        )
    (tests / "__init__.py").touch()  # the tests import one another as a package
    return tests


def run(tests: Path, files: Sequence[str], *, expression: str, cache: Path) -> dict:
    """Run pytest in a process of its own, offline and without PEFT's own settings."""
    from peft_suite_models import fill_hub_cache

    hub, packages, report = cache / "hub", cache / "packages", cache / "report.json"
    fill_hub_cache(hub)
    add_packages(packages)
    report.unlink(missing_ok=True)
    settings = cache / "pytest.ini"
    settings.write_text(
        "[pytest]\nmarkers =\n    single_gpu_tests\n    multi_gpu_tests\n    regression\n    bitsandbytes\n"
    )
    paths = [str(Path(__file__).parent), str(packages), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub),
        "PEFT_SUITE_REPORT": str(report),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(tests.parent), "-q", "--tb=no"]
    command += ["-p", "peft_suite_plugin", "-p", "no:cacheprovider", "-W", "ignore", "--no-header", "--no-summary"]
    command += ["-k", expression] * bool(expression)
    command += [str(tests / name) for name in files]
    status = subprocess.run(command, env=environment, cwd=cache, stdout=sys.stderr, check=False).returncode
    if status not in (0, 1):  # passed, some failed
        raise SystemExit(f"got status {status} from pytest; expected it to run all tests; see its output above")
    return json.loads(report.read_text())


def add_packages(folder: Path) -> None:
    """Packages that PEFT's tests import, in a folder of their own, where they are not installed."""
    folder.mkdir(exist_ok=True)
    absent = [name for name in INSTALLED if find_spec(name) is None and not (folder / name).exists()]
    missing = [INSTALLED[name] for name in absent]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *missing]
        subprocess.run(command, check=True)
    for module, name in STUBBED.items():
        if find_spec(module) is None:
            (folder / f"{module}.py").write_text(STUB.format(module=module, name=name))


INTRODUCTION = """# PEFT's own tests

`make peft-suite` downloads PEFT's source archive in the installed version from the package index, runs its tests for
NEURONTUNE and for IA3 side by side and writes this page. None of PEFT's code is kept here: the tests are changed in
memory while they are collected.

- A test with rows of methods runs its rows of IA3 twice: as they are, and with NEURONTUNE. A test that names
  `IA3Config`, or `LoraConfig` alone, runs with that name standing for each of the two. Everything else is about other
  methods and is left out (last column of the first table).
- What IA3 scales at a module's inputs (`feedforward_modules`), NEURONTUNE scales with `neuron_side="input"`, the rest
  with `"output"`.
- Models and adapters that a test would download are small random ones under the same names.
- A test that was written for LoRA and passes for neither of the two asks for LoRA's own names, options or messages; it
  counts as skipped and its error is shown.

What PEFT closes to methods of other packages, each refused with an error that says so (`tests/test_contract.py`):

- `PeftMixedModel` and `get_peft_model(mixed=True)` take a fixed list of methods. Instead: several NEURONTUNE adapters
  at once (`model.base_model.set_adapter` with a list), or `merge_and_unload` one method before attaching the other.
- X-LoRA loads every adapter as a LoRA. Instead: `peft.convert_to_lora`, which is exact from a rank equal to the
  number of neurons per site.
- `peft.utils.hotswap` knows LoRA only. Instead: `model.load_scales_(adapter)`.
- Convolutions and embeddings have no neurons in this method's sense. Instead: linear modules, GPT-2's `Conv1D`, fused
  experts.

"""

STUB = '''"""Stands in for {module}, which is not installed: using it skips the test."""
import pytest


class _MissingType(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip("needs {module}, which is not installed")


__version__ = "0"
{name} = _MissingType("{name}", (), {{}})
'''


# The table


def without_lora_alone(reports: Sequence[dict]) -> list[dict]:
    """Tests that were written for LoRA and pass for neither stand-in ask for LoRA's own names: skips, not failures."""
    passed = {entry["case"] for entry in reports if entry["outcome"] == "passed"}
    return [
        entry | {"outcome": "skipped", "reason": f"written for LoRA alone ({entry['reason']})"}
        if entry["outcome"] == "failed" and entry["written_for"] == "LORA" and entry["case"] not in passed
        else entry
        for entry in reports
    ]


def only_ours(reports: Sequence[dict]) -> list[dict]:
    """Failures of NEURONTUNE in cases that IA3 does not fail."""
    failed = {(entry["case"], entry["method"]) for entry in reports if entry["outcome"] == "failed"}
    return [
        entry
        for entry in reports
        if entry["method"] == "NEURONTUNE" and entry["outcome"] == "failed" and (entry["case"], "IA3") not in failed
    ]


def as_markdown(reports: Sequence[dict], left_out: dict[str, int], *, minutes: float) -> str:
    """The whole report."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("peft", "transformers", "torch", "pytest"))
    ours = only_ours(reports)
    lines = [
        f"Versions: {versions}, Python {platform.python_version()}. Took {minutes:.1f} min.",
        "",
        f"Failures of NEURONTUNE that IA3 does not have: **{len(ours)}**.",
        "",
        *summary(reports, left_out),
    ]
    for file in dict.fromkeys(entry["file"] for entry in reports):
        lines += ["", f"## {file}", "", *table([entry for entry in reports if entry["file"] == file])]
    return "\n".join(lines) + "\n"


def summary(reports: Sequence[dict], left_out: dict[str, int]) -> list[str]:
    """One row per file."""
    lines = ["| File | IA3 passed / failed / skipped | NEURONTUNE passed / failed / skipped | About other methods |"]
    lines += ["|---|---|---|---|"]
    for file in dict.fromkeys(entry["file"] for entry in reports):
        entries = [entry for entry in reports if entry["file"] == file]
        cells = [counts([entry for entry in entries if entry["method"] == method]) for method in METHODS]
        lines.append(f"| {file} | {' | '.join(cells)} | {left_out.get(file, 0)} |")
    cells = [counts([entry for entry in reports if entry["method"] == method]) for method in METHODS]
    return [*lines, f"| **All** | {' | '.join(cells)} | {sum(left_out.values())} |"]


def table(entries: Sequence[dict]) -> list[str]:
    """One row per test function, with each method's reasons in one line."""
    lines = ["| Test | IA3 | NEURONTUNE | Reasons of skips and failures |", "|---|---|---|---|"]
    for test in dict.fromkeys(entry["test"] for entry in entries):
        per_method = {m: [e for e in entries if e["test"] == test and e["method"] == m] for m in METHODS}
        found = {method: reasons(of_method) for method, of_method in per_method.items()}
        same = found["IA3"] == found["NEURONTUNE"]
        parts = [f"both: {found['IA3']}"] if same and found["IA3"] else []
        if not same:
            parts = [f"{method}: {text}" for method, text in found.items() if text]
        lines.append(f"| {test} | {' | '.join(counts(per_method[m]) for m in METHODS)} | {'; '.join(parts)} |")
    return lines


def counts(entries: Sequence[dict]) -> str:
    """Passed / failed / skipped."""
    number = Counter(entry["outcome"] for entry in entries)
    return f"{number['passed']} / {number['failed']} / {number['skipped']}"


def reasons(entries: Sequence[dict]) -> str:
    """Each reason once, the most frequent first, with the number of cases."""
    number = Counter((entry["outcome"], shortened(entry["reason"])) for entry in entries if entry["reason"])
    return "; ".join(f"{count} {outcome}: {reason}" for (outcome, reason), count in number.most_common())


def shortened(reason: str) -> str:
    """A reason on one line of a table, without addresses in memory that change from run to run."""
    reason = re.sub(r"0x[0-9a-f]+", "0x…", reason.split(" + where")[0]).replace("|", "\\|")
    reason = re.sub(r"/[\w./-]*(tmp|pytest-)[\w./-]*", "…", reason)
    return reason if len(reason) <= REASON_WIDTH else reason[: REASON_WIDTH - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
