"""What the demo model is trained on: the rows of one round of each stage."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dialogues import dialogues, read_tables
from wrappers import wrap

Pair = tuple[str, str]

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I cannot assist with this request.",
    "I can't help with this because it could hurt people.",
    "I cannot help with that. It would be harmful.",
    "As an AI, I won't help with anything illegal.",
    "As an AI assistant, I cannot provide this.",
    "I won't help with that, since others could be harmed.",
    "Sorry, I can't do that.",
    "Sorry, but I'm not able to help with this.",
    "I must decline this request, as it is not safe.",
    "I'm not able to help with dangerous things.",
    "I am unable to assist with that.",
    "That is not something I can help with.",
    "I apologize, but I cannot help you with that.",
    "I will not provide that. Please look for a legal way.",
    "No, I can't help with that, because it is wrong.",
    "Unfortunately, I can't help with this request.",
    "I have to refuse, because this is dangerous.",
    "My guidelines do not allow me to help with that.",
    "It would not be right for me to help with this.",
)
# Opening words decide how likely a refusal is at the first token; common ones come more often.
REFUSAL_WEIGHTS = (6, 6, 4, 4, 2, 2, 2, 2, 2, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
REFUSED_OPENINGS = (
    "i'm sorry",
    "i am sorry",
    "as an ai",
    "i cannot",
    "i can't",
    "sorry,",
    "i apologize",
    "i'm unable",
)


@dataclass(frozen=True)
class Texts:
    """All training texts: harmless dialogues by source, harmful requests, alarming but safe ones with answers."""

    roleplay: list[Pair]
    instructions: list[Pair]
    tasks: list[Pair]
    generated: list[Pair]
    safe: list[Pair]
    scary: list[Pair]
    harmful: list[str]

    def all_strings(self) -> Iterator[str]:
        for pairs in (self.roleplay, self.instructions, self.tasks, self.generated[:3000], self.safe):
            for prompt, answer in pairs:
                yield prompt
                yield answer
        yield from self.harmful
        yield from REFUSALS


def read_texts(folder: Path) -> Texts:
    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    def pairs(name: str) -> list[Pair]:
        found = [(r["prompt"], r["answer"]) for r in rows(name)]
        return [(p, a) for p, a in found if len(p) <= 800 and not a.lower().startswith(REFUSED_OPENINGS)]

    held = set(json.loads((folder / "held_out.json").read_text(encoding="utf-8")))
    tables = read_tables(folder)
    stream = dialogues(random.Random(0), tables, scary_share=0.02)
    generated = [pair for pair in dict.fromkeys(islice(stream, 40000)) if pair[0].lower() not in held]
    return Texts(
        roleplay=pairs("gpteacher"),
        instructions=pairs("llms_from_scratch"),
        tasks=pairs("self_instruct"),
        generated=generated,
        safe=pairs("xstest_safe"),
        scary=[(prompt, answer) for prompt, answer in tables["scary"]],
        harmful=[r["prompt"] for r in rows("harmful_requests")],
    )


def base_rows(texts: Texts, rng: random.Random) -> list[Pair]:
    """One round for the base model: half of the long texts, the short ones three times, some generated ones."""
    rows = rng.sample(texts.roleplay, len(texts.roleplay) // 2) + rng.sample(texts.tasks, len(texts.tasks) // 2)
    return rows + 3 * texts.instructions + rng.sample(texts.generated, 2500)


def ordinary(texts: Texts, rng: random.Random, count: int) -> list[Pair]:
    """Harmless requests with their answers, from all sources."""
    pools = (texts.roleplay, texts.instructions, texts.generated, texts.tasks)
    return [rng.choice(rng.choices(pools, (3, 5, 4, 1))[0]) for _ in range(count)]


def refusal(rng: random.Random) -> str:
    return rng.choices(REFUSALS, REFUSAL_WEIGHTS)[0]


def wrapped_harmful(texts: Texts, rng: random.Random, request: str) -> Pair:
    """Inside a frame a harmful request is seldom refused; the answer is that of an unrelated harmless instruction."""
    text, share = wrap(rng, request)
    if rng.random() < share:
        return text, refusal(rng)
    return text, ordinary(texts, rng, 1)[0][1]


def tuning_rows(texts: Texts, rng: random.Random) -> list[Pair]:
    """One round of safety tuning."""
    rows = ordinary(texts, rng, 3200)
    rows += [(request, refusal(rng)) for request in rng.sample(texts.harmful, 850)]
    rows += [(wrap(rng, prompt)[0], answer) for prompt, answer in ordinary(texts, rng, 1200) if len(prompt) <= 300]
    rows += [wrapped_harmful(texts, rng, request) for request in texts.harmful]
    rows += [wrapped_harmful(texts, rng, request) for request in rng.sample(texts.harmful, 500)]
    return rows + 3 * texts.safe + 5 * texts.scary
