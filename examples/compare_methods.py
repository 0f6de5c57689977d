"""NEURONTUNE beside random neurons, IA3 and the system prompt, on a part of the prompts and with few steps."""

import argparse
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import MetaConfig, PromptSet, compare
from neurontune_peft.prompts import complete_responses

MODEL = Path(__file__).parent / "demo_model" / "model"


def main() -> None:
    """Compare and print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", default="comparison.json")
    output = options.parse_args().output
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    shipped = PromptSet.load()
    prompts = replace(shipped, prompts=tuple(p for p in shipped.prompts if p.split == "test") + train_part(shipped))
    prompts = complete_responses(prompts, model, tokenizer, max_new_tokens=12)
    comparison = compare(
        model,
        tokenizer,
        prompts,
        methods=("neurontune", "random", "ia3", "system-prompt"),
        counts={"safety": 0.1},
        config=MetaConfig(steps=6, inner_steps=2),
        attribution={"n_prompts": 8},
        settings={"strength": (1.0,)},
        lr_tries=1,
        max_tests=6,
        max_new_tokens=8,
    )
    print(comparison)
    comparison.save(output)
    print(f"Comparison: {output}")


def train_part(prompts: PromptSet) -> tuple:
    """A quarter of the train prompts of each kind."""
    kinds = ("harmful", "benign", "borderline")
    return tuple(p for kind in kinds for p in prompts.select(kind=kind, split="train")[::4])


if __name__ == "__main__":
    main()
