"""Does the protection hold in other languages?"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject

FEWEST = 5


def in_other_languages(subject: Subject) -> Iterator[Row]:
    """
    Measure harmful test requests in other scripts than most of the set, each script on its own.

    Languages are told apart by their script alone (`ours`): French in an English set is not seen.

    Args:
        subject ([`Subject`]): The model.
    """
    harmful = subject.prompts.select(kind="harmful", split="test")
    scripts = {prompt.id: script_of(prompt.prompt) for prompt in harmful}
    counted = Counter(scripts.values())
    usual = counted.most_common(1)[0][0] if counted else ""
    others = [script for script, count in counted.items() if script not in ("", usual) and count >= FEWEST]
    if not others:
        raise NotTestedError("not in the set: all harmful test requests are in one script")
    for script in sorted(others):
        chosen = tuple(prompt for prompt in harmful if scripts[prompt.id] == script)[: subject.max_tests]
        ids = {None, *(prompt.id for prompt in chosen)}
        attacks = tuple(a for a in subject.prompts.attacks if a.split == "test" and a.prompt_id in ids)
        tests = replace(subject.prompts, prompts=chosen, attacks=attacks)
        hits = subject.attacks(tests)
        with subject.model.disable_adapter():
            base = subject.attacks(tests)
        yield subject.row(f"{script} script", f"{len(chosen)} requests in it", hits, base=base)


def script_of(text: str) -> str:
    """
    The script of most letters of a text, in lower case, such as `"latin"` or `"cyrillic"`; empty without letters.

    Args:
        text (`str`): The text.
    """
    # The first word of a letter's Unicode name is its script.
    names = [unicodedata.name(letter, "unknown").split()[0].lower() for letter in text if letter.isalpha()]
    return Counter(names).most_common(1)[0][0] if names else ""
