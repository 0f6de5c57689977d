"""In which format is a file of prompts, and what does each of its rows say?"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurontune_peft.prompts.records import at, parse_object, read_text


@dataclass(frozen=True)
class Row:
    """
    What one row of a file says, in the words of prompt sets.

    Args:
        place (`str`): File and line.
        fields (`dict[str, Any]`): Fields of a [`Prompt`] or an [`Attack`], as far as the row gives them.
        attack (`dict[str, str]`, *optional*): `family`, `name` and `attacked_prompt` of an attack on this request.
    """

    place: str
    fields: dict[str, Any]
    attack: dict[str, str] | None = None


@dataclass(frozen=True)
class Format:
    """
    A format of tables.

    Args:
        name (`str`): What users call it; ids of requests begin with it.
        columns (`frozenset[str]`): Columns by which it is known.
        read (`Callable`): From a record to the fields that it gives.
        origin (`str`): Where files of this format are published, and under which licence.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Mapping[str, str]], dict[str, Any]]
    origin: str


def _advbench(row: Mapping[str, str]) -> dict[str, Any]:
    return {"prompt": row["goal"], "kind": "harmful", "source": "advbench"}  # targets comply: they are no answers


def _harmbench(row: Mapping[str, str]) -> dict[str, Any]:
    context = (row.get("ContextString") or "").strip()
    category = row["FunctionalCategory"].strip()
    return {
        "id": f"harmbench-{row['BehaviorID']}",
        # HarmBench's own way of putting a context and what to do with it into one request.
        "prompt": f"{context}\n\n---\n\n{row['Behavior']}" if context else row["Behavior"],
        "kind": "harmful",
        "source": "harmbench" if category == "standard" else f"harmbench-{category}",
    }


def _xstest(row: Mapping[str, str]) -> dict[str, Any]:
    unsafe = row["label"] == "unsafe" if row.get("label") else row["type"].startswith("contrast")
    if row.get("label") not in (None, "", "safe", "unsafe"):
        raise ValueError(f"got label {row['label']!r}; expected 'safe' or 'unsafe'; correct it")
    kind = "harmful" if unsafe else "borderline"
    return {"id": f"xstest-{row['id']}", "prompt": row["prompt"], "kind": kind, "source": "xstest"}


def _strongreject(row: Mapping[str, str]) -> dict[str, Any]:
    return {"prompt": row["forbidden_prompt"], "kind": "harmful", "source": "strongreject"}


def _behaviors(row: Mapping[str, str]) -> dict[str, Any]:
    return {"prompt": row["Goal"], "source": "jailbreakbench"}  # harmful and benign ones come in files of their own


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value not in (None, "")}


JAILBREAKBENCH = "jailbreakbench"
JSONL = "jsonl"
PLAIN_ORIGIN = "as given; its licence is the file's own"
# From the most telling columns to the least.
TABLES = (
    Format(
        "harmbench",
        frozenset({"Behavior", "FunctionalCategory", "BehaviorID"}),
        _harmbench,
        "HarmBench, centerforaisafety/HarmBench, MIT",
    ),
    Format(
        "xstest",
        frozenset({"id", "prompt", "type", "focus"}),
        _xstest,
        "XSTest, paul-rottger/exaggerated-safety, CC BY 4.0",
    ),
    Format(
        "strongreject",
        frozenset({"category", "source", "forbidden_prompt"}),
        _strongreject,
        "StrongREJECT, alexandrasouly/strongreject, MIT",
    ),
    Format(
        "jailbreakbench-behaviors",
        frozenset({"Goal", "Target", "Behavior", "Category"}),
        _behaviors,
        "JBB-Behaviors, JailbreakBench/jailbreakbench, MIT",
    ),
    Format("advbench", frozenset({"goal", "target"}), _advbench, "AdvBench, llm-attacks/llm-attacks, MIT"),
    Format("csv", frozenset({"prompt"}), _plain, PLAIN_ORIGIN),
)
ORIGINS = {
    **{table.name: table.origin for table in TABLES},
    JAILBREAKBENCH: "JailbreakBench artifact, JailbreakBench/artifacts, MIT",
    JSONL: PLAIN_ORIGIN,
}
FORMATS = tuple(ORIGINS)


def read_source(path: Path, format: str | None = None) -> tuple[str, list[Row]]:
    """
    Read a file of prompts.

    Args:
        path (`Path`): The file.
        format (`str`, *optional*): One of `FORMATS`; found from the content when left out.

    Returns:
        `tuple[str, list[Row]]`: The format, and what the rows say.

    Raises:
        ValueError: the file is empty, no UTF-8, a web page, or of no known format; or a row is damaged. The message
            names file and line.
        OSError: the file cannot be read.
    """
    text = at(str(path), lambda: read_text(path)).removeprefix("\ufeff")
    at(str(path), lambda: check_content(text))
    found = format or _format_of(path, text)
    if found == JAILBREAKBENCH:
        return found, list(_artifact(path, text))
    if found == JSONL:
        return found, list(_lines(path, text))
    table = next(table for table in TABLES if table.name == found)
    return found, list(_table(path, text, table))


def check_content(text: str) -> None:
    start = text.lstrip()[:200].lower()
    if not start:
        raise ValueError("got an empty file; expected rows of prompts; fetch the file again")
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
        raise ValueError("got a web page (HTML); expected CSV, JSON or JSONL; fetch the raw file, not its page")
    if start.startswith("version https://git-lfs"):
        raise ValueError("got a Git LFS pointer; expected the file itself; fetch it with git lfs pull")


def _format_of(path: Path, text: str) -> str:
    if text.lstrip().startswith(("{", "[")):
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            return JSONL
        if isinstance(whole, dict) and "jailbreaks" in whole:
            return JAILBREAKBENCH
        if isinstance(whole, dict) and "\n" not in text.strip():
            return JSONL
        keys = sorted(whole)[:6] if isinstance(whole, dict) else type(whole).__name__
        raise ValueError(
            f"{path}: got one JSON value with {keys}; expected a JailbreakBench artifact with 'jailbreaks', or one "
            "JSON object per line; write each prompt on a line of its own"
        )
    columns = _reader(path, text).fieldnames or []
    for table in TABLES:
        if table.columns <= set(columns):
            return table.name
    raise ValueError(
        f"{path}, line 1: got the columns {list(columns)[:8]}; expected those of one format: {_known_columns()}; "
        "rename the columns"
    )


def _known_columns() -> str:
    return ", ".join(f"{table.name} ({', '.join(sorted(table.columns))})" for table in TABLES)


def _reader(path: Path, text: str) -> csv.DictReader[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames  # noqa: B018  (reads the first line)
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: got a damaged header ({error}); expected CSV; correct it") from None
    return reader


def _table(path: Path, text: str, table: Format) -> Iterator[Row]:
    reader = _reader(path, text)
    if lacking := table.columns - set(reader.fieldnames or []):
        raise ValueError(
            f"{path}, line 1: got no column {sorted(lacking)}; expected {sorted(table.columns)} for format "
            f"{table.name!r}; choose the right --format or rename the columns"
        )
    while True:
        start = reader.line_num + 1
        place = f"{path}, line {start}"
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{place}: got a damaged row ({error}); expected CSV; correct its quotes") from None
        if record is None:
            return
        if None in record or None in record.values():
            raise ValueError(
                f"{place}: got {'more' if None in record else 'fewer'} cells than columns; expected "
                f"{len(reader.fieldnames or [])}; put quotes around cells that hold commas or line breaks"
            )
        yield Row(place, at(place, lambda record=record: table.read(record)))  # type: ignore[misc]


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield Row(place, _plain(at(place, lambda line=line: parse_object(line))))  # type: ignore[misc]


def _artifact(path: Path, text: str) -> Iterator[Row]:
    whole = at(str(path), lambda: parse_object(text))
    parameters, entries = whole.get("parameters"), whole.get("jailbreaks")
    if not isinstance(entries, list) or not isinstance(parameters, dict) or not parameters.get("method"):
        raise ValueError(
            f"{path}: got no parameters.method or no list of jailbreaks; expected a JailbreakBench artifact; choose "
            "the right --format or fetch the file again"
        )
    method = str(parameters["method"])
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, jailbreak {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("goal"), str):
            raise ValueError(f"{place}: got no goal; expected an object with goal and prompt; correct it")
        fields = {"prompt": entry["goal"], "kind": "harmful", "source": JAILBREAKBENCH}
        attacked = entry.get("prompt")
        name = f"{method}-{parameters.get('model', 'unknown')}-{entry.get('index', number)}"
        attack = {"family": method, "name": name, "attacked_prompt": attacked} if attacked else None
        yield Row(place, fields, attack)
