"""pytest plugin that puts NEURONTUNE and IA3 side by side into PEFT's own tests while they are collected.

Nothing of PEFT's tests is stored here; the modules are changed in memory:

1. A test with rows of methods keeps the rows of IA3 and runs each twice: once as it is, once with NEURONTUNE. Where a
   test has rows of LoRA but none of IA3, the LoRA rows are translated for both.
2. A test that names `IA3Config` itself also runs twice; the second time, that name stands for NEURONTUNE.
3. A test that names `LoraConfig` only runs twice with that name standing for IA3 and for NEURONTUNE. Options that only
   LoRA has skip the case, with the option as the reason.
4. Everything else is about other methods and is left out.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig
from peft_suite_models import METHODS, point_adapters_at
from peft_suite_stand_ins import STAND_INS, LoraAsIA3, LoraAsNeuronTune, translated

torch.set_num_threads(1)

SUPPORT = ("tests.testing_common", "tests.testing_utils")
# Tests that let only LoRA pass and skip the rest, although the feature is not LoRA's alone.
LORA_ONLY_BY_SKIP = ("test_mixed_adapter_batches", "test_generate_with_mixed_adapter_batches")
NO_DOWNLOAD = (
    r"offline mode|outgoing traffic|couldn't connect|LocalEntryNotFound|cannot find the requested|"
    r"Can't find 'adapter_config"
)
CONVOLUTION = "convolutions are refused with a TypeError that says so: neurons are features of linear modules"
# Errors that say why a case does not apply; `Int` comes from tests that draw random values for every saved tensor.
EXPLAINED = {
    NO_DOWNLOAD: "needs a download that has no local stand-in",
    r"got '\w+' of type Conv\dd; expected nn.Linear": CONVOLUTION,
    r"\"normal_kernel_cpu\" not implemented for 'Int'": "draws random values for every tensor; ours hold indices too",
    r"no attribute 'is_feedforward'": "asks for an attribute that only IA3's layers have",
}
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
CONFIG_NAMES = {name for name in dir(peft) if name.endswith("Config")}

# Ways a name in the tests can stand for a method.
IA3_NAMES, LORA_NAMES = ("IA3Config",), ("LoraConfig",)


# Collection: which tests, with which rows


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Keep the rows of IA3 (or of LoRA) and add the axis of methods."""
    if is_about_a_method(metafunc):
        metafunc.fixturenames.append("peft_suite_method")
        metafunc.parametrize("peft_suite_method", METHODS, scope="function")


def is_about_a_method(metafunc: pytest.Metafunc) -> bool:
    """Whether a test can be run for either method, after its rows have been cut down."""
    rows = [keep_rows(metafunc.definition, mark) for mark in list(metafunc.definition.iter_markers("parametrize"))]
    if "no" in rows:
        return False
    named = bool({"IA3Config", "LoraConfig"} & names_used(metafunc))
    return any(rows) or named or metafunc.module.__name__.endswith("test_auto")


def keep_rows(definition: Any, mark: pytest.Mark) -> str:
    """
    Cut the rows of a `parametrize` mark down to one method.

    Returns:
        `str`: `"IA3Config"` or `"LoraConfig"`, whose rows were kept; `""` for a mark without methods; `"no"` when only
        other methods have rows.
    """
    names, values, *rest = mark.args
    values = list(values)
    configs = [[v for v in row_values(row) if is_config(v)] for row in values]
    if not any(configs):
        return ""
    for kept in (IA3Config, LoraConfig):
        chosen = [i for i, row in enumerate(configs) if row and all(v is kept or type(v) is kept for v in row)]
        if chosen:
            break
    else:
        return "no"
    options = dict(mark.kwargs)
    if isinstance(options.get("ids"), (list, tuple)):
        options["ids"] = [options["ids"][i] for i in chosen]
    new = pytest.mark.parametrize(names, [values[i] for i in chosen], *rest, **options).mark
    for node in definition.listchain():
        if mark in node.own_markers:
            node.own_markers[node.own_markers.index(mark)] = new
    return kept.__name__


def row_values(row: Any) -> tuple[Any, ...]:
    """The values of one row, however it was written."""
    values = getattr(row, "values", row)
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)


def is_config(value: Any) -> bool:
    """Whether a value is a configuration or a class of them."""
    return isinstance(value, PeftConfig) or (inspect.isclass(value) and issubclass(value, PeftConfig))


def names_used(metafunc: pytest.Metafunc) -> set[str]:
    """Names of configuration classes in a test, its fixtures and the helpers of its class."""
    functions = [metafunc.function]
    fixtures = metafunc.definition._fixtureinfo.name2fixturedefs
    functions += [d.func for defs in fixtures.values() for d in defs if "tests." in d.func.__module__]
    found: set[str] = set()
    seen: set[Any] = set()
    while functions:
        code = getattr(functions.pop(), "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        names = set(all_names(code))
        found |= names & CONFIG_NAMES
        own = vars(metafunc.cls) if metafunc.cls else {}
        functions += [own[name] for name in names if inspect.isfunction(own.get(name)) and not name.startswith("test")]
    return found


def all_names(code: types.CodeType) -> Iterator[str]:
    """Names in a function and the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from all_names(constant)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Exchange configurations in the rows, and leave out what is not about a method."""
    kept: list[pytest.Item] = []
    left_out: Counter[str] = Counter()
    for item in items:
        method = method_of(item)
        if method is None:
            left_out[item.path.name] += 1
            continue
        params = item.callspec.params  # type: ignore[attr-defined]
        for name, value in params.items():
            params[name] = translated(value, method)
        kept.append(item)
    if support := sys.modules.get("tests.testing_utils"):
        support._HUB_MODEL_ACCESSES = EveryModel()
    config.stash[LEFT_OUT] = dict(left_out)
    items[:] = kept


LEFT_OUT = pytest.StashKey[dict[str, int]]()
REPORTS = pytest.StashKey[list[dict[str, str]]]()


def method_of(item: pytest.Item) -> str | None:
    """The method that a case is run for."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("peft_suite_method") if callspec else None


class EveryModel(dict):
    """PEFT's tests go online for a model that they have not seen; here they have seen every one."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 1


# Running: names stand for the method for the duration of one case


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Let the names in the test modules stand for the case's method; set-up and tear-down included."""
    method = method_of(item) or ""
    names = stand_ins_of(item)
    point_adapters_at(Path(os.environ["HF_HUB_CACHE"]), method)
    with pytest.MonkeyPatch.context() as patch:
        if item.function.__name__ in LORA_ONLY_BY_SKIP:  # type: ignore[attr-defined]
            for module in (item.module, sys.modules[SUPPORT[0]]):  # type: ignore[attr-defined]
                patch.setattr(module, "LoraConfig", item.callspec.params["config_cls"])  # type: ignore[attr-defined]
        for name in names:
            stand_in = STAND_INS.get((method, name))
            for module in (item.module, *(sys.modules.get(support) for support in SUPPORT)):  # type: ignore[attr-defined]
                if stand_in is not None and hasattr(module, name):
                    patch.setattr(module, name, stand_in)
        return (yield)


def stand_ins_of(item: pytest.Item) -> tuple[str, ...]:
    """Names that stand for the method in a case, worked out as in the collection."""
    function = item.function  # type: ignore[attr-defined]
    params = item.callspec.params  # type: ignore[attr-defined]
    if any(
        isinstance(v, (LoraAsIA3, LoraAsNeuronTune)) or v in (LoraAsIA3, LoraAsNeuronTune)
        for v in params.values()
        if is_config(v)
    ):
        return (*IA3_NAMES, *LORA_NAMES)
    rows = any(is_config(value) for value in params.values())
    return IA3_NAMES if rows or "IA3Config" in set(all_names(function.__code__)) else LORA_NAMES


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the method refuses by design."""
    if method_of(item) == "NEURONTUNE":
        model_id = str(item.callspec.params.get("model_id", ""))  # type: ignore[attr-defined]
        if model_id.startswith(CONVOLUTIONS):
            pytest.skip(
                "convolutions are refused with a TypeError that says so: neurons are features of linear modules"
            )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Read IA3's own names in a test as ours, and tell a missing download from a failure."""
    if method_of(pyfuncitem) == "NEURONTUNE":
        pyfuncitem.obj = renamed(pyfuncitem.obj)
    try:
        return (yield)
    except Exception as error:
        for pattern, reason in EXPLAINED.items():
            if re.search(pattern, f"{type(error).__name__}: {error}"):
                pytest.skip(reason)
        raise


def renamed(test: Any) -> Any:
    """The test with `ia3_l` (IA3's parameter) and `IA3` (its type) written as NEURONTUNE's."""
    function = getattr(test, "__func__", test)
    copy = types.FunctionType(
        renamed_code(function.__code__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(copy, test.__self__) if inspect.ismethod(test) else copy


def renamed_code(code: types.CodeType) -> types.CodeType:
    """Rename in constants and attribute names, inner functions included."""

    def new(constant: Any) -> Any:
        if isinstance(constant, types.CodeType):
            return renamed_code(constant)
        if isinstance(constant, str):
            return re.sub(r"\bIA3\b", "NEURONTUNE", constant.replace("ia3_l", "neurontune_delta"))
        if isinstance(constant, (tuple, frozenset)):
            return type(constant)(new(part) for part in constant)
        return constant

    names = tuple("neurontune_delta" if name == "ia3_l" else name for name in code.co_names)
    return code.replace(co_consts=tuple(new(constant) for constant in code.co_consts), co_names=names)


# Results


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note the outcome and its reason in one line."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        reason = ""
        if report.outcome == "skipped":
            reason = str(call.excinfo.value) if call.excinfo else str(report.wasxfail)
        elif report.outcome == "failed" and call.excinfo:
            reason = f"{call.excinfo.typename}: {call.excinfo.value}"
        params = item.callspec.params  # type: ignore[attr-defined]
        written_for = "LORA" if "LoraConfig" in stand_ins_of(item) else ""
        case = item.nodeid.replace(f"[{method_of(item)}", "[*", 1)  # the axis of methods comes first in an id
        entry = {"file": item.path.name, "test": item.originalname, "case": case}  # type: ignore[attr-defined]
        entry |= {"method": params["peft_suite_method"], "outcome": report.outcome, "reason": " ".join(reason.split())}
        entry |= {"written_for": written_for, "seconds": f"{call.duration:.2f}"}
        item.config.stash.setdefault(REPORTS, []).append(entry)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write all outcomes for the table."""
    left_out, reports = session.config.stash.get(LEFT_OUT, {}), session.config.stash.get(REPORTS, [])
    Path(os.environ["PEFT_SUITE_REPORT"]).write_text(json.dumps({"left_out": left_out, "reports": reports}))
