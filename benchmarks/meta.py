"""
What does training cost? A step of each order, memory, and time as families and steps grow.

    python benchmarks/meta.py [--quick] [--threads N]

Bounds: a second-order step at most 2.2 times a first-order one; a first-order step at most 1.1 * (inner_steps + 1)
plain steps; peak memory within 10 % of a plain forward and backward pass through frozen weights; time linear in
families and steps.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import interleaved_medians, parser, print_header, print_table, set_up
from overhead import spread_neurons
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from neurontune_peft import MetaConfig, NeuronTuneConfig, PromptSet, meta_train
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Task, attacked_gradient
from neurontune_peft.training.outer import outer_gradient, utility_of
from neurontune_peft.training.tasks import TaskSampler

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
ORDERS = ("none", "first", "second")


def adapted(path: str, *, per_site: int = 16) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    neurons = spread_neurons(base, per_site)
    return get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))


def families_of(model: PeftModel, path: str, prompts: PromptSet, config: MetaConfig) -> Families:
    sampler = TaskSampler(prompts, config, prompts.phrases.refusal)
    return Families(model, AutoTokenizer.from_pretrained(path), find_deltas(model, config.bounds), sampler, config)


def plain_gradient(families: Families, task: Task) -> None:
    """One forward and backward pass over a support set."""
    values = families.deltas.parameters
    torch.autograd.grad(task.support(values), values)


def plain_passes(model: PeftModel, families: Families, task: Task, *, frozen: bool) -> None:
    """A pass over the support set and one over the query set, as a step makes them."""
    values = families.deltas.parameters
    for part in (task.support, task.query):
        if not frozen:
            torch.autograd.grad(part(values), values)
            continue
        # Without trained deltas, back to the embeddings.
        embeddings = model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
        with model.disable_adapter():
            part(values).backward()
        handle.remove()


def show_steps(families: Families, task: Task, repeats: int) -> None:
    """The attacked part of a step, where the orders differ, and whole steps."""
    inner = families.config.inner_steps
    cases: dict[str, Callable[[], object]] = {"plain": lambda: plain_gradient(families, task)}
    for order in ORDERS:
        config = replace(families.config, order=order)
        cases[f"attacked, {order}"] = lambda config=config: attacked_gradient(families.deltas, task, config)
        cases[f"whole, {order}"] = lambda config=config: outer_gradient(
            families.deltas, task, config, lambda costs: config.utility_weight * utility_of(costs, config)
        )
    times = interleaved_medians(cases, repeats=repeats)
    rows = []
    for order in ORDERS:
        part, whole = times[f"attacked, {order}"], times[f"whole, {order}"]
        rows.append(
            [
                order,
                f"{part * 1e3:.0f} ms",
                f"{part / times['plain']:.2f}",
                f"{part / times['attacked, first']:.2f}",
                f"{whole * 1e3:.0f} ms",
                f"{whole / times['whole, first']:.2f}",
            ]
        )
    print(f"### One step, {inner} inner steps (a plain step: {times['plain'] * 1e3:.0f} ms)\n")
    columns = ["order", "attacked prompts", "in plain steps", "to first order", "whole step", "to first order"]
    print_table(columns, rows)
    bound = (inner + 1) * 1.1
    first, second = (times[f"attacked, {order}"] for order in ("first", "second"))
    print(f"first order: {first / times['plain']:.2f} plain steps; bound {bound:.1f}")
    print(f"second order: {second / first:.2f} first-order steps; bound 2.2\n")


def peak_of(what: str, path: str) -> float:
    """Peak memory in MB that a fresh process needs for one kind of step."""
    command = [sys.executable, __file__, "--model", path, "--peak", what, "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_of(name: str) -> float:
    """A line of this process's status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure_peak(what: str, path: str) -> None:
    """Run one kind of step a few times and print the most memory that the process held above the loaded model."""
    prompts = PromptSet.load()
    model = adapted(path)
    families = families_of(model, path, prompts, MetaConfig())
    task = families.draw(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
    before = memory_of("VmRSS")
    for _ in range(3):
        if what in ("plain", "frozen"):
            plain_passes(model, families, task, frozen=what == "frozen")
        else:
            attacked_gradient(families.deltas, task, replace(families.config, order=what))
    print(memory_of("VmHWM") - before)


def show_memory(path: str) -> None:
    kinds = {
        "forward and backward through frozen weights, one set after the other": "frozen",
        "the same for the deltas": "plain",
        "joint step": "none",
        "first-order step": "first",
        "second-order step": "second",
    }
    peaks = {name: peak_of(what, path) for name, what in kinds.items()}
    reference = next(iter(peaks.values()))
    print("### Peak memory above the loaded model (4 support and 4 query prompts; a fresh process each)\n")
    print_table(["", "MB", "ratio"], [[n, f"{peak:.0f}", f"{peak / reference:.2f}"] for n, peak in peaks.items()])


def with_families(prompts: PromptSet, count: int) -> PromptSet:
    """Copies of the train families under new names, so that only their number changes."""
    train = [a for a in prompts.attacks if a.split == "train"]
    names = prompts.train_families
    attacks = []
    for number in range(count):
        source = names[number % len(names)]
        copies = [a for a in train if a.family == source]
        attacks += [replace(a, family=f"{source}-{number}", name=f"{a.name}-{number}") for a in copies]
    return replace(prompts, attacks=tuple(attacks))


def show_growth(path: str, prompts: PromptSet, config: MetaConfig, *, rounds: int) -> None:
    """Whole training runs, a round over all families each time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = []
    for families in (2, 4, 8):
        row = [str(families)]
        for turns in (rounds, 2 * rounds):
            model, steps = adapted(path), families * turns
            start = time.perf_counter()
            meta_train(model, tokenizer, with_families(prompts, families), replace(config, steps=steps))
            spent = time.perf_counter() - start
            row += [f"{spent:.1f} s", f"{spent / steps * 1e3:.0f} ms"]
        rows.append(row)
    print("### Time grows with families and steps\n")
    once, twice = f"{rounds} rounds", f"{2 * rounds} rounds"
    print_table(["families", once, "per step", twice, "per step"], rows)


def show_checkpoint(path: str, prompts: PromptSet, config: MetaConfig) -> None:
    """What writing a checkpoint after every step costs."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "run.safetensors")
        times = {}
        for name, options in (("without", {}), ("every step", {"checkpoint": file})):
            start = time.perf_counter()
            meta_train(adapted(path), tokenizer, prompts, replace(config, checkpoint_every=1), **options)
            times[name] = (time.perf_counter() - start) / config.steps
        size = file.stat().st_size
    print("### Checkpoint\n")
    print_table(
        ["", "per step"],
        [[name, f"{spent * 1e3:.0f} ms"] for name, spent in times.items()] + [["file", f"{size:,} B"]],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--peak", default=None, help="measure the memory of one kind of step, for this script itself")
    given = set_up(options)
    logging.disable_progress_bar()
    if given.peak is not None:
        measure_peak(given.peak, given.model)
        return
    prompts = PromptSet.load()
    print_header("Training")
    config = MetaConfig()
    families = families_of(adapted(given.model), given.model, prompts, config)
    show_steps(families, families.draw(0), 3 if given.quick else 15)
    show_memory(given.model)
    show_growth(
        given.model, prompts, replace(config, inner_steps=1 if given.quick else 5), rounds=1 if given.quick else 4
    )
    show_checkpoint(given.model, prompts, replace(config, steps=4 if given.quick else 30))


if __name__ == "__main__":
    main()
