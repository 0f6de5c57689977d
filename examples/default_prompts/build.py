"""Build the default prompt set of neurontune_peft from published prompt files.

    python examples/default_prompts/build.py --source ../shared/data/prompts \\
        --output neurontune_peft/prompts/data/default

Deterministic: the same source files give the same bytes. Writes prompts.jsonl, attacks.jsonl and phrases.json; where
the source files come from, and under which licences, stands in SOURCES.md of the output folder (written by hand).
"""

import argparse
import csv
import json
import os
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from templates import COMPLIANCES, HELD_OUT_FAMILIES, REFUSALS, TRAIN_FAMILIES

Row = tuple[str, str, str | None]  # source, prompt, response

SEED = 20
COUNTS = {  # kind -> source -> (train, test)
    "harmful": {
        "advbench": (60, 28),
        "catqa": (60, 28),
        "malicious_instruct": (40, 12),
        "harmbench": (0, 12),  # test only: requests of a source that tuning has not met
    },
    "benign": {"llms_from_scratch": (120, 60), "gpteacher": (40, 20)},
    "borderline": {"xstest": (60, 60)},
}
# CatQA's other categories hold many requests that a careful assistant would answer (budgets, tax, campaigning).
CATQA_CATEGORIES = (
    "Illegal Activity",
    "Hate/Harass/Violence",
    "Malware Viruses",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Privacy Violation Activity",
)
# Nothing that mentions minors; nothing about self-harm, where a short refusal is not the right answer either.
LEFT_OUT = re.compile(
    r"child|\bkids?\b|\bminors?\b|\bteen|underage|infant|toddler|\bbab(?:y|ies)\b|\bboys?\b|\bgirls?\b|school|student|youth"
    r"|young|adolescen|pupil|pedo|suicid|self-harm|harm(?:ing)? (?:my|your|one)sel|anorexi|eating disorder",
    re.IGNORECASE,
)
SCARY = re.compile(
    r"kill|murder|weapon|bomb|attack|hack|steal|drug|crim|terror|violen|war\b|dead|death|spy|heist", re.IGNORECASE
)
FRAME_WORDS = """
a about an and any are as at be by can could describe design detail detailed do does down for from generate
get give guide how i idea if in instruct instruction into is it list make me method most of off on one or
other out plan program provide publish script should show some someone speech step that the their them there
these they this to tutorial up use user way what when where which who will with without would write you your
create develop explain outline tip teach people best effective strategy so not post article blog message
email letter persuade convince encourage
"""
FRAME = frozenset(FRAME_WORDS.split())
# Left out as well: requests on which careful people differ.
DEBATABLE = re.compile(
    r"parkour|government censorship|tracking pixels|tools and software for generating|not used or tested|\(APT\)"
    r"|to enhance athletic|to get high|facial recognition tools",
    re.IGNORECASE,
)
HEDGED = re.compile(  # published answers labelled as complying that open like a refusal all the same
    r"sorry|apolog|cannot|can't|won't|unable|not able|\ban ai\b|language model|not appropriate|however,|i must"
    r"|i understand|don't have|thank you for",
    re.IGNORECASE,
)
REFUSING = re.compile(r"sorry|i cannot|i can't|as an ai", re.IGNORECASE)  # words that a judge of openings looks for
OVERLAP = 0.5  # share of common words from which two requests count as the same one


def words(text: str) -> frozenset[str]:
    """The distinctive words of a request, in lower case and without endings."""
    tokens = re.findall(r"[a-z0-9]+", text.lower())
    stems = (
        re.sub(r"(?:ing|ed|es|s|e)$", "", token) if len(token) > 4 else token for token in tokens if token not in FRAME
    )
    return frozenset(stem for stem in stems if stem not in FRAME)


def overlap(left: str, right: str) -> float:
    """Jaccard similarity of the distinctive words of two requests, between 0 and 1."""
    a, b = words(left), words(right)
    return len(a & b) / len(a | b) if a and b else float(left.lower() == right.lower())


def shorten(text: str, limit: int = 200) -> str | None:
    """The leading sentences of `text` that fit into `limit` characters, or `None` when not even the first one does."""
    text = " ".join(text.split())
    ends = [m.end() for m in re.finditer(r"(?<![0-9A-Z])[.!?](?=\s|$)", text) if m.end() <= limit]
    return text[: ends[-1]] if ends else None


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_harmful(source: Path) -> list[Row]:
    rows: list[Row] = [("advbench", r["goal"], None) for r in read_csv(source / "advbench_harmful_behaviors.csv")]
    catqa = json.loads((source / "catqa_english.json").read_text(encoding="utf-8"))
    rows += [("catqa", q, None) for name in CATQA_CATEGORIES for questions in catqa[name].values() for q in questions]
    lines = (source / "malicious_instruct.txt").read_text(encoding="utf-8").splitlines()
    rows += [("malicious_instruct", line, None) for line in lines]
    rows += [
        ("harmbench", r["Behavior"], None)
        for r in read_csv(source / "harmbench_behaviors_text_val.csv")
        if r["FunctionalCategory"] == "standard"
    ]
    return rows


def read_benign(source: Path) -> list[Row]:
    rows: list[Row] = []
    for r in json.loads((source / "instruction_data_1100.json").read_text(encoding="utf-8")):
        prompt = "\n".join(part for part in (r["instruction"].strip(), r["input"].strip()) if part)
        if 15 <= len(r["output"]) <= 200 and len(prompt) <= 200 and r["output"].isascii():
            rows.append(("llms_from_scratch", prompt, r["output"].strip()))
    for r in json.loads((source / "gpteacher_roleplay.json").read_text(encoding="utf-8")):
        response = shorten(r["response"])
        if r["input"].strip() or response is None or len(response) < 40 or len(r["instruction"]) > 200:
            continue
        text = f"{r['instruction']} {response}"
        if not SCARY.search(text) and not HEDGED.search(text) and response.isascii() and "AI" not in text:
            rows.append(("gpteacher", r["instruction"].strip(), response))
    return rows


def read_borderline(source: Path) -> list[Row]:
    answers: dict[str, str] = {}  # prompt -> shortest published answer that a person labelled as complying
    for line in (source / "xstest_annotated_completions.jsonl").read_text(encoding="utf-8").splitlines():
        r = json.loads(line)
        text = shorten(r["completion"]) if r["label"] == "1_full_compliance" else None
        if text and not HEDGED.search(text) and 40 <= len(text) < len(answers.get(r["prompt"], " " * 1000)):
            answers[r["prompt"]] = text
    prompts = [r["prompt"] for r in read_csv(source / "xstest_prompts.csv") if r["label"] == "safe"]
    return [("xstest", prompt, answers.get(prompt)) for prompt in prompts]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    "harmful": read_harmful,
    "benign": read_benign,
    "borderline": read_borderline,
}


def is_new(row: Row, chosen: Iterable[Row], limit: float) -> bool:
    return all(overlap(row[1], other[1]) < limit for other in chosen)


def choose(kind: str, rows: list[Row], rng: random.Random) -> dict[str, list[Row]]:
    """Draw both splits; no request comes twice in other words, neither within a split nor across them."""
    rows = [(s, " ".join(p.split(" ")).strip(), r) for s, p, r in rows if not LEFT_OUT.search(f"{p} {r or ''}")]
    rows = [row for row in rows if not DEBATABLE.search(row[1])]
    limit = OVERLAP if kind == "harmful" else 0.75  # short everyday questions share a pattern and still differ
    rng.shuffle(rows)
    taken: dict[str, list[Row]] = {"train": [], "test": []}
    for place, split in ((1, "test"), (0, "train")):
        for source, wanted in COUNTS[kind].items():
            pool = [row for row in rows if row[0] == source and not REFUSING.search(row[2] or "")]
            got = 0
            for row in pool:
                if got < wanted[place] and is_new(row, taken["test"] + taken["train"], limit):
                    taken[split].append(row)
                    got += 1
            if got < wanted[place]:
                raise ValueError(
                    f"got {got} {kind} {split} prompts of {source}; expected {wanted[place]}; lower COUNTS"
                )
    for part in taken.values():
        rng.shuffle(part)  # mixes the sources
    return taken


def prompt_rows(source: Path) -> list[dict[str, str | None]]:
    rng = random.Random(SEED)
    rows: list[dict[str, str | None]] = []
    for kind, reader in READERS.items():
        for split, part in choose(kind, reader(source), rng).items():
            for i, (name, prompt, response) in enumerate(part):
                rows.append(
                    {
                        "id": f"{kind}-{split}-{i:03d}",
                        "prompt": prompt,
                        "kind": kind,
                        "response": response,
                        "split": split,
                        "source": name,
                    }
                )
    return rows


def attack_rows() -> list[dict[str, str]]:
    groups = [(family, split, part) for family, parts in TRAIN_FAMILIES.items() for split, part in parts.items()]
    groups += [(family, "test", part) for family, part in HELD_OUT_FAMILIES.items()]
    return [
        {"family": family, "name": f"{family}-{split}-{i}", "split": split, "template": template}
        for family, split, part in groups
        for i, template in enumerate(part)
    ]


def write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the published prompt files")
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the prompt set")
    args = parser.parse_args()
    prompts, attacks = prompt_rows(args.source), attack_rows()
    phrases = {"refusal": REFUSALS, "compliance": COMPLIANCES}
    args.output.mkdir(parents=True, exist_ok=True)
    write(args.output / "prompts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts))
    write(args.output / "attacks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in attacks))
    write(args.output / "phrases.json", json.dumps(phrases, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {len(prompts)} prompts and {len(attacks)} attack templates to {args.output}")


if __name__ == "__main__":
    main()
