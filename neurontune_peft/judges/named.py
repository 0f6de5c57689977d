"""Which judge does a word on the command line mean?"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from neurontune_peft.judges.format import format_judge
from neurontune_peft.judges.opening import opening_judge
from neurontune_peft.judges.verdict import Judge

WORDS = (
    "format, opening, classifier:MODEL, classifier:MODEL#LABEL=VERDICT,…, rubric:MODEL, openai:MODEL@URL "
    "or module:attr"
)


def judge_of(word: str) -> Judge:
    """
    Make a judge.

    Args:
        word (`str`): `format`, `opening`, `classifier:MODEL` (with `#LABEL=VERDICT,…` where the label names do not
            speak for themselves), `rubric:MODEL`, `openai:MODEL@URL`, or `module:attr` for a callable of your own
            (modules of the working directory are found).

    Returns:
        `Callable`: The judge.

    Raises:
        ValueError: there is no such judge.
    """
    plain: dict[str, Judge] = {"format": format_judge, "opening": opening_judge}
    if word in plain:
        return plain[word]
    kind, _, rest = word.partition(":")
    if not rest:
        raise ValueError(f"got judge {word!r}; expected {WORDS}; correct the word")
    try:
        if kind == "classifier":
            from neurontune_peft.judges.classifier import ClassifierJudge

            model, _, labels = rest.partition("#")
            return ClassifierJudge.from_pretrained(model, labels=_labels(labels) if labels else None)
        if kind == "rubric":
            from neurontune_peft.judges.rubric import RubricJudge

            return RubricJudge.from_pretrained(rest)
        if kind == "openai":
            return _endpoint(rest)
        return _own(kind, rest)
    except (ImportError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"got judge {word!r} ({reason}); expected {WORDS}; correct the word or install it") from error


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    return {name: meaning for name, _, meaning in pairs}


def _endpoint(rest: str) -> Judge:
    from neurontune_peft.judges.endpoint import EndpointJudge

    model, found, url = rest.partition("@http")
    if not found or not model:
        raise ValueError(
            f"got judge 'openai:{rest}'; expected openai:MODEL@URL; write for example "
            "openai:my-model@http://127.0.0.1:8000/v1"
        )
    return EndpointJudge(model, f"http{url}")


def _own(module: str, attribute: str) -> Judge:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = import_module(module)
    judge: Any = getattr(found, attribute, None)
    if not callable(judge):
        raise ValueError(
            f"got judge '{module}:{attribute}'; expected a callable of the module; it has "
            f"{[name for name in dir(found) if not name.startswith('_')][:20]}; correct the name"
        )
    return judge
