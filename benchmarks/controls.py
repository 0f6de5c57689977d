"""
Does it matter which neurons, and how their scales are learnt? The same data and steps for NEURONTUNE and its controls.

    python benchmarks/controls.py [--model DIR] [--prompts DIR] [--quick] [--threads N]

One seed; the learning rates are given in the table and were not searched for the controls. Every method is measured on
test prompts and held-out attack families, beside what it cost. The judge sees the opening of an answer only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import parser, print_header, print_table, set_up
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft import (
    MetaConfig,
    NeuronTuneConfig,
    PromptSet,
    Report,
    attribute,
    evaluate,
    find_sites,
    meta_train,
)
from neurontune_peft import select as select_neurons
from neurontune_peft.evaluation import Rate
from neurontune_peft.objectives import response_logits
from neurontune_peft.prompts import Batch, encode
from neurontune_peft.training.losses import answer_loss, utility_losses
from neurontune_peft.training.tasks import TaskSampler

COUNTS = {"safety": 0.1, "utility": 0.1}
FEW = {"safety": 0.02, "utility": 0.01}
DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"


@dataclass(frozen=True)
class Task:
    """What every method gets."""

    model_path: str
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    config: MetaConfig
    n_prompts: int = 32  # of each kind, to score neurons on

    def base(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32).eval()


def neurontune(
    task: Task, *, method: str = "gate_path", order: str = "first", counts: dict | None = None
) -> PeftModel:
    model = task.base()
    scores = attribute(model, task.tokenizer, task.prompts, method=method, n_prompts=task.n_prompts)
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=select_neurons(scores, counts or COUNTS))
    adapted = get_peft_model(model, config)
    meta_train(adapted, task.tokenizer, task.prompts, replace(task.config, order=order))
    return adapted


def control(task: Task, config: IA3Config | LoraConfig, *, lr: float) -> PeftModel:
    """Joint training of another PEFT method: the data, the losses and the number of steps of order 'none'."""
    torch.manual_seed(task.config.seed)
    model = get_peft_model(task.base(), config).eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    sampler = TaskSampler(task.prompts, task.config, task.prompts.phrases.refusal)
    first = task.config.first_token_weight
    for step in logging.tqdm(range(task.config.steps), desc=config.peft_type.value):
        data = sampler.draw(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / task.config.steps)
        attacked, utility = batch_of(task, data.support + data.query), batch_of(task, data.utility)
        loss = answer_loss(model, attacked, first_token_weight=first)
        if data.plain:
            plain = answer_loss(model, batch_of(task, data.plain), first_token_weight=first)
            loss = loss + task.config.plain_weight * plain
        with torch.no_grad(), model.disable_adapter():
            base_logits = response_logits(model, utility)
        kl, nll = utility_losses(model, utility, base_logits, first_token_weight=first)
        cost = task.config.kl_weight * kl + task.config.nll_weight * nll
        optimizer.zero_grad()
        (loss + task.config.utility_weight * cost).backward()
        optimizer.step()
    return model


def batch_of(task: Task, pairs: tuple[tuple[str, str], ...]) -> Batch:
    return encode(task.tokenizer, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])


def methods(task: Task) -> dict[str, Callable[[], PeftModel]]:
    names = sorted({name.rsplit(".", 1)[-1] for name in find_sites(task.base())})
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=names, feedforward_modules=names)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=names, r=8, lora_alpha=8)
    return {
        "NEURONTUNE (20 % of the neurons, first order)": lambda: neurontune(task),
        "… without meta-learning (order none)": lambda: neurontune(task, order="none"),
        "… random neurons": lambda: neurontune(task, method="random"),
        "… `gradient` scores": lambda: neurontune(task, method="gradient"),
        "… 3 % of the neurons": lambda: neurontune(task, counts=FEW),
        "… 3 %, random neurons": lambda: neurontune(task, method="random", counts=FEW),
        "IA3, all neurons, lr 0.1": lambda: control(task, ia3, lr=0.1),
        "LoRA r=8, lr 0.003": lambda: control(task, lora, lr=0.003),
    }


def row(name: str, model: PeftModel | PreTrainedModel, report: Report) -> list[str]:
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad) if isinstance(model, PeftModel) else 0
    return [
        name,
        f"{numbers:,}",
        pooled(report.attack_success_held_out),
        pooled(report.attack_success_trained),
        *(str(rate) for rate in (report.borderline_refusal, report.benign_refusal, report.wrapped_benign_refusal)),
        f"{report.perplexity:.2f}",
    ]


def pooled(rates: dict[str, Rate]) -> str:
    """One rate over several families; the interval takes prompts as independent."""
    return str(Rate(sum(rate.successes for rate in rates.values()), sum(rate.total for rate in rates.values())))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    given = set_up(options)
    config = MetaConfig(steps=2, inner_steps=1) if given.quick else MetaConfig()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    task = Task(given.model, tokenizer, PromptSet.load(given.prompts), config, n_prompts=2 if given.quick else 32)
    print_header("Controls")
    rows = []
    base = task.base()
    new_tokens = 4 if given.quick else 32
    rows.append(row("base model", base, evaluate(base, task.tokenizer, task.prompts, max_new_tokens=new_tokens)))
    chosen = methods(task)
    for name in list(chosen)[:: 3 if given.quick else 1]:
        model = chosen[name]()
        report = evaluate(model, task.tokenizer, task.prompts, max_new_tokens=new_tokens)
        rows.append(row(name, model, report))
    print_table(
        [
            "",
            "trained numbers",
            "attack success, held-out families",
            "attack success, train families",
            "borderline refused",
            "benign refused",
            "wrapped benign refused",
            "perplexity",
        ],
        rows,
    )
    print(
        f"{config.steps} steps; judge {report.judge}; prompt set {task.prompts.fingerprint[:12]}; seed {config.seed}."
    )


if __name__ == "__main__":
    main()
