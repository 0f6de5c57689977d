"""What is in a prompt set? Counts, and examples without showing harm to who did not ask for it."""

from __future__ import annotations

from collections import Counter

from neurontune_peft.prompts.conversation import Request
from neurontune_peft.prompts.prompt_set import PromptSet
from neurontune_peft.prompts.records import KINDS, SPLITS, Attack, Prompt

Counts = Counter[tuple[str, str]]  # (name, split) to how many


def describe(prompts: PromptSet, *, examples: int = 0, family: str | None = None, show_harmful: bool = False) -> str:
    """
    Describe a prompt set.

    Args:
        prompts ([`PromptSet`]): The set.
        examples (`int`, *optional*, defaults to `0`): Examples of each kind and family.
        family (`str`, *optional*): Attacks of this family only.
        show_harmful (`bool`, *optional*, defaults to `False`): Write harmful requests out.

    Returns:
        `str`: Counts by kind, source and family for each split, and examples.

    Raises:
        ValueError: the set has no such family.
    """
    families = tuple(dict.fromkeys(attack.family for attack in prompts.attacks))
    if family is not None and family not in families:
        raise ValueError(f"got family {family!r}; expected one of {sorted(families)}; correct the name")
    chosen = families if family is None else (family,)
    lines = [f"Prompt set {prompts.fingerprint[:12]}", ""]
    kinds: Counts = Counter((prompt.kind, prompt.split) for prompt in prompts.prompts)
    sources: Counts = Counter((f"{p.kind}, {p.source or 'unknown'}", p.split) for p in prompts.prompts)
    rows: list[tuple[str, Counts]] = [(kind, kinds) for kind in KINDS]
    rows += [(name, sources) for name in sorted({name for name, _ in sources})]
    lines += _table("requests", rows)
    turns = sum(isinstance(prompt.prompt, Request) for prompt in prompts.prompts)
    lines += [f"  {turns} of them after other turns or under a system prompt"] if turns else []
    attacks: Counts = Counter((attack.family, attack.split) for attack in prompts.attacks)
    held_out = prompts.held_out_families
    titles = {name: f"{name} (held out)" if name in held_out else name for name in chosen}
    by_title: Counts = Counter({(titles[f], split): n for (f, split), n in attacks.items() if f in titles})
    lines += ["", *_table("attacks", [(title, by_title) for title in titles.values()])]
    for kind in KINDS if family is None else ():
        found = prompts.select(kind=kind)[:examples]
        lines += ["", f"{kind}:", *(_shown_prompt(p, show_harmful) for p in found)] if found else []
    for name in chosen:
        own = [attack for attack in prompts.attacks if attack.family == name][:examples]
        lines += ["", f"{titles[name]}:", *(_shown_attack(a, show_harmful) for a in own)] if own else []
    return "\n".join(lines)


def _table(title: str, rows: list[tuple[str, Counts]]) -> list[str]:
    width = max([len(title), *(len(name) for name, _ in rows)])
    head = f"{title:<{width}}" + "".join(f"{split:>8}" for split in SPLITS)
    return [head, *(f"{n:<{width}}" + "".join(f"{counts[n, split]:>8}" for split in SPLITS) for n, counts in rows)]


def _shown_prompt(prompt: Prompt, show_harmful: bool) -> str:
    if prompt.kind == "harmful" and not show_harmful:
        return f"  {prompt.id}: {_folded(prompt.prompt)}"
    text = prompt.prompt.shown if isinstance(prompt.prompt, Request) else prompt.prompt
    return f"  {prompt.id}: {_indented(text)}"


def _shown_attack(attack: Attack, show_harmful: bool) -> str:
    if attack.template is not None:
        return f"  {attack.name}: {_indented(attack.template)}"
    text = str(attack.attacked_prompt)
    return f"  {attack.name} of {attack.prompt_id}: {_indented(text) if show_harmful else _folded(text)}"


def _folded(text: str) -> str:
    return f"[harmful request, {len(text)} characters; --show-harmful shows it]"


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
