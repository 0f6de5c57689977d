"""
Does it matter which neurons, and how their scales are learnt? NEURONTUNE beside its controls, with default options.

    python benchmarks/controls.py [--model DIR] [--prompts DIR] [--quick] [--threads N]

The tables are those of `neurontune compare`, which has all options. With --quick, a few test prompts and two steps: it
shows that everything runs, and its numbers mean nothing.
"""

from pathlib import Path

import torch
from common import parser, print_header, set_up
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import MetaConfig, PromptSet
from neurontune_peft.evaluation.compare import DEFAULT_METHODS, compare
from neurontune_peft.report.controls import controls_markdown

METHODS = (*DEFAULT_METHODS, "gate_path")
DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
QUICK = {
    "config": MetaConfig(steps=2, inner_steps=1, support_size=1, query_size=1, borderline_size=1),
    "attribution": {"n_prompts": 2, "steps": 2},
    "settings": {"strength": (), "multiplier": (), "coefficient": ()},
    "lr_tries": 1,
    "max_tests": 4,
    "max_new_tokens": 4,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    options.add_argument("--seeds", type=int, default=1, help="how many seeds")
    options.add_argument("--lr-tries", type=int, default=3, help="learning rates that are tried for each control")
    options.add_argument("--max-tests", type=int, default=None, help="most test requests of each kind")
    options.add_argument("--rows", default=None, help="file of finished rows, from which an interrupted run goes on")
    given = set_up(options)
    full = {"seeds": range(given.seeds), "lr_tries": given.lr_tries, "max_tests": given.max_tests}
    full |= {"selection": {"spread": "auto"}, "checkpoint": given.rows}
    prompts = PromptSet.load(given.prompts)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    print_header("Controls")
    print(controls_markdown(compare(model, tokenizer, prompts, methods=METHODS, **(QUICK if given.quick else full))))


if __name__ == "__main__":
    main()
