"""Write the demo model's training texts into data/, without the test prompts of the default prompt set.

    python examples/demo_model/prepare_data.py --source ../shared/data/prompts

Left out as well: near-duplicates of test prompts, and the benign prompts of both splits. train.py reads the result.
"""

import argparse
import csv
import json
import random
import sys
from itertools import islice
from pathlib import Path

from dialogues import dialogues, read_tables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "default_prompts"))
from build import LEFT_OUT, read_csv, read_harmful, shorten, words  # type: ignore[import-not-found]  # noqa: E402

LIMITS = {"harmful": 0.5, "benign": 0.75, "borderline": 0.75}  # as in build.py


class Guard:
    """Knows the prompts that the model must not see, and tells whether a text is one of them in other words."""

    def __init__(self, folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        held = [r for r in rows if r["split"] == "test" or r["kind"] == "benign"]
        self.exact = {" ".join(r["prompt"].lower().split()) for r in held}
        self.tests = [(words(r["prompt"]), LIMITS[r["kind"]]) for r in held if r["split"] == "test"]

    def allows(self, prompt: str) -> bool:
        if " ".join(prompt.lower().split()) in self.exact:
            return False
        mine = words(prompt)
        return all(len(mine & w) < limit * len(mine | w) for w, limit in self.tests if mine and w)


def join(*parts: str) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())


def benign(source: Path) -> dict[str, list[tuple[str, str]]]:
    texts: dict[str, list[tuple[str, str]]] = {"gpteacher": [], "llms_from_scratch": [], "self_instruct": []}
    for r in json.loads((source / "gpteacher_roleplay.json").read_text(encoding="utf-8")):
        texts["gpteacher"].append((join(r["instruction"], r["input"]), r["response"].strip()))
    for r in json.loads((source / "instruction_data_1100.json").read_text(encoding="utf-8")):
        texts["llms_from_scratch"].append((join(r["instruction"], r["input"]), r["output"].strip()))
    for name in ("self_instruct_seed_tasks.jsonl", "self_instruct_user_oriented.jsonl"):
        for line in (source / name).read_text(encoding="utf-8").splitlines():
            r = json.loads(line)
            texts["self_instruct"] += [
                (join(r["instruction"], i["input"]), i["output"].strip()) for i in r["instances"]
            ]
    return texts


def harmful(source: Path) -> list[tuple[str, str]]:
    rows = [(name, text) for name, text, _ in read_harmful(source) if name != "harmbench"]
    rows += [("harmbench_train", r["Behavior"]) for r in read_csv(source / "harmbench_safe_responses.csv")]
    rows += [("xstest", r["prompt"]) for r in read_csv(source / "xstest_prompts.csv") if r["label"] == "unsafe"]
    seeds = json.loads((source / "safedecoding_seed_reject.json").read_text(encoding="utf-8"))["prompts"]
    return rows + [("safedecoding", r["prompt"]) for r in seeds]


def borderline(source: Path) -> list[tuple[str, str]]:
    answers: dict[str, list[str]] = {}
    for line in (source / "xstest_annotated_completions.jsonl").read_text(encoding="utf-8").splitlines():
        r = json.loads(line)
        text = shorten(r["completion"], 300) if r["label"] == "1_full_compliance" else None
        opening = (text or "").lower()[:80]
        if text and not any(
            mark in opening for mark in ("sorry", "apolog", "not", "n't", "an ai", "i must", "unable")
        ):
            answers.setdefault(r["prompt"], []).append(text)
    return [(prompt, text) for prompt, texts in answers.items() for text in texts]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8", newline="\n")
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--prompts", type=Path, default=ROOT / "neurontune_peft/prompts/data/default")
    parser.add_argument("--output", type=Path, default=HERE / "data")
    args = parser.parse_args()
    csv.field_size_limit(10**7)
    guard = Guard(args.prompts)
    for name, pairs in benign(args.source).items():
        rows = [{"prompt": p, "answer": a} for p, a in pairs if a and guard.allows(p)]
        write_jsonl(args.output / f"{name}.jsonl", rows)
    requests = [
        {"prompt": p, "source": s} for s, p in harmful(args.source) if not LEFT_OUT.search(p) and guard.allows(p)
    ]
    write_jsonl(args.output / "harmful_requests.jsonl", requests)
    safe = [
        {"prompt": p, "answer": a} for p, a in borderline(args.source) if not LEFT_OUT.search(p) and guard.allows(p)
    ]
    write_jsonl(args.output / "xstest_safe.jsonl", safe)
    # Generated dialogues that repeat a test prompt: train.py leaves them out.
    stream = islice(dialogues(random.Random(0), read_tables(args.output), scary_share=0.02), 40000)
    held = sorted({prompt.lower() for prompt, _ in stream})
    held = [prompt for prompt in held if not guard.allows(prompt)]
    (args.output / "held_out.json").write_text(json.dumps(held, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"held_out.json: {len(held)} generated requests")


if __name__ == "__main__":
    main()
