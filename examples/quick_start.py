"""
The whole way on the demo model: which neurons, how large are their scales, which requests are scaled, what changed?

A part of the prompts and few steps, so that it takes a minute; `neurontune tune` does the same with all of them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import (
    NeuronTuneConfig,
    PromptSet,
    attribute,
    compare_markdown,
    evaluate,
    fit_trigger,
    for_flagged_requests,
    meta_train,
    select,
)

MODEL = Path(__file__).parent / "demo_model" / "model"


def part_of(prompts: PromptSet) -> PromptSet:
    """Half of the train prompts and an eighth of the test prompts."""
    kept = []
    for kind in ("harmful", "benign", "borderline"):
        kept += prompts.select(kind=kind, split="train")[::2] + prompts.select(kind=kind, split="test")[::8]
    return replace(prompts, prompts=tuple(kept))


def main() -> None:
    """Tune, measure, save."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", default="quick-start-adapter")
    output = options.parse_args().output
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    prompts = part_of(PromptSet.load())

    before = evaluate(model, tokenizer, prompts, max_new_tokens=12)
    scores = attribute(model, tokenizer, prompts, roles=("safety",), n_prompts=12)
    neurons = select(scores, {"safety": 0.1}, spread="auto")
    print(neurons)
    model = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    print(meta_train(model, tokenizer, prompts, replace(for_flagged_requests(), steps=12, inner_steps=2)))
    print(fit_trigger(model, tokenizer, prompts, examples_per_kind=40))
    after = evaluate(model, tokenizer, prompts, max_new_tokens=12)
    print(compare_markdown(before, after))
    model.save_pretrained(output)
    print(f"Adapter: {output}")


if __name__ == "__main__":
    main()
