"""
How fast are answers made, and how fast are they read again?

    python benchmarks/evaluation.py [--model DIR] [--prompts DIR] [--quick] [--threads N]

The engine behind `evaluate` beside one plain `generate` over the same prompts in equal batches, which are padded on
the left and drawn at random, or sorted by length. Tokens are those of the answers, up to their end. Then `evaluate`
with an empty cache and with a full one.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved_medians, parser, print_header, print_table, set_up
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import PromptSet, evaluate
from neurontune_peft.evaluation import Generation
from neurontune_peft.evaluation.generation.engine import Engine
from neurontune_peft.judges.coherence import repetition
from neurontune_peft.judges.format import read_answer
from neurontune_peft.prompts.answers import fitting_ids, generation_options
from neurontune_peft.prompts.batches import pad_rows

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"


def plain(model: torch.nn.Module, rows: list[list[int]], options: dict, *, count: int, batch_size: int) -> list:
    """Answers by `generate`, one batch after the other, as they come."""
    answers = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = pad_rows(part, [[] for _ in part], pad_id=options["pad_token_id"], padding_side="left")
        made = model.generate(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            max_new_tokens=count,
            do_sample=False,
            **options,
        )
        answers += made[:, batch.input_ids.shape[1] :].tolist()
    return answers


def by_engine(engine: Engine, rows: list[list[int]]) -> list:
    """Answers by the engine, in the order of the requests."""
    found: dict[int, list[int]] = {}
    for part in engine.answers(rows):
        found |= part
    return [found[place] for place in range(len(rows))]


def texts_of(prompts: PromptSet, most: int) -> list[str]:
    """Test requests of all kinds and families, drawn at random."""
    tests = prompts.select(split="test")
    harmful = [prompt for prompt in tests if prompt.kind == "harmful"]
    texts = [prompt.prompt for prompt in tests]
    for family in prompts.families(split="test"):
        members = prompts.attackable(harmful, family=family, split="test")
        texts += prompts.attacked(members, family=family, split="test")
    random.Random(0).shuffle(texts)
    return texts[:most]


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    given = set_up(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto" if device == "cuda" else torch.float32)
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts = PromptSet.load(given.prompts)
    most, repeats = (40, 1) if given.quick else (256, 3)
    print_header("Evaluation")
    texts = texts_of(prompts, most)
    settings = generation_options(model, tokenizer)
    rows = []
    for count, batch_size in ((8, 8),) if given.quick else ((32, 64), (128, 64), (128, 16)):
        ids = fitting_ids(model, tokenizer, texts, count)
        by_length = sorted(ids, key=len)
        engine = Engine(model, settings, count, batch_size)
        answers = by_engine(engine, ids)
        tokens = sum(map(len, answers))
        same = sum(
            wide[: len(own)] == own
            for wide, own in zip(plain(model, ids, settings, count=count, batch_size=batch_size), answers, strict=True)
        )
        speeds = interleaved_medians(
            {
                "plain": lambda: plain(model, ids, settings, count=count, batch_size=batch_size),  # noqa: B023
                "sorted": lambda: plain(model, by_length, settings, count=count, batch_size=batch_size),  # noqa: B023
                "engine": lambda: by_engine(engine, ids),  # noqa: B023
            },
            repeats=repeats,
            warmup=0,  # both have answered once above
        )
        cells = [f"{tokens / seconds:.0f}" for seconds in speeds.values()]
        ratio = speeds["plain"] / speeds["engine"]
        rows.append(
            [str(count), str(batch_size), f"{tokens / len(ids):.1f}", *cells, f"{ratio:.2f}", f"{same}/{most}"]
        )
    header = ["most tokens", "batch", "tokens per answer", "plain, tokens/s", "plain, sorted", "engine"]
    print_table([*header, "engine / plain", "same answers as plain"], rows)

    folder = Path(tempfile.mkdtemp())
    if given.quick:
        keep = [prompt for prompt in prompts.prompts if prompt.split == "train"]
        keep += [p for k in ("harmful", "benign", "borderline") for p in prompts.select(kind=k, split="test")[:3]]
        prompts = PromptSet(tuple(keep), prompts.attacks, prompts.phrases)
    how = Generation(max_new_tokens=8 if given.quick else 32, cache=folder)
    first, one = timed(lambda: evaluate(model, tokenizer, prompts, generation=how))
    for known in (read_answer, repetition):  # a repetition is another process, which has read no answer yet
        known.cache_clear()
    again, two = timed(lambda: evaluate(model, tokenizer, prompts, generation=how))
    shutil.rmtree(folder)
    cells = [f"{first:.1f}", f"{again:.2f}", f"{first / again:.0f}", "yes" if one == two else "NO"]
    print_table(["evaluate, s", "repeated, s", "times faster", "same report"], [cells])


if __name__ == "__main__":
    main()
