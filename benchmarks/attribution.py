"""
What do scores cost? Gate path against a bare pass and against captum, in time and memory; selection from many neurons.

    python benchmarks/attribution.py [--quick] [--threads N]

Times are medians of interleaved repeats. Memory is the largest resident set beyond that before the call, each in a
process of its own (Linux).
"""

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import LayerIntegratedGradients
from common import interleaved_medians, parser, print_header, print_table, set_up
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from neurontune_peft import PromptSet, Scores, attribute, find_sites, select
from neurontune_peft.attribution import gate_path
from neurontune_peft.attribution.engine import gated, held_still, site_modules
from neurontune_peft.objectives import target_log_prob
from neurontune_peft.prompts import Attack, Batch, Prompt

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
PROMPTS = {True: 1, False: 4}  # quick or not: harmful ones at 1x, each plain and attacked
TIMES = (1, 4, 16)


class Work:
    """A frozen random model, a batch, and every way to score it; the same in each process."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.steps = 4 if quick else 8
        self.rows, self.tokens = (2, 16) if quick else (4, 64)
        config = LlamaConfig(
            hidden_size=128 if quick else 256,
            intermediate_size=344 if quick else 688,
            num_hidden_layers=2 if quick else 6,
            num_attention_heads=8,
            vocab_size=4096,  # that of the demo model's tokenizer
            pad_token_id=0,
        )
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(config).eval().requires_grad_(False)
        self.sites = find_sites(self.model)
        self.batch = self.make_batch(self.rows, self.tokens)

    def make_batch(self, rows: int, tokens: int) -> Batch:
        ids = torch.randint(3, 4096, (rows, tokens))
        response = torch.zeros(rows, tokens, dtype=torch.bool)
        response[:, tokens // 2 :] = True
        return Batch(ids, torch.ones_like(ids), response)

    def one_pass(self) -> None:
        """One forward and one backward pass to the embeddings: what any gradient of the whole model costs."""
        leaves = []

        def remember(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            leaves.append(out.requires_grad_())
            return out

        handle = self.model.get_input_embeddings().register_forward_hook(remember)
        total = target_log_prob(self.model, self.batch).sum()
        handle.remove()
        torch.autograd.grad(total, leaves)

    def gate_path(self, steps: int | None = None) -> dict[str, Tensor]:
        return gate_path(self.model, self.batch, self.sites, target_log_prob, steps=steps or self.steps)

    def gate_path_by_site(self) -> dict[str, Tensor]:
        """One site's gates at a time, the others open."""
        scores: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            scores |= gate_path(self.model, self.batch, {name: site}, target_log_prob, steps=self.steps)
        return scores

    def captum(self, *, by_site: bool = False, internal_batch_size: int | None = None) -> dict[str, Tensor]:
        """Captum's layer integrated gradients on layers that put out the gates, from 0 to 1."""
        gates = {name: Expand(site.width) for name, site in self.sites.items()}
        modules = site_modules(self.model, self.sites)

        def forward(scale: Tensor, ids: Tensor, mask: Tensor, response: Tensor) -> Tensor:
            values = {name: gate(scale) for name, gate in gates.items()}
            with gated(modules, values):
                return target_log_prob(self.model, Batch(ids, mask, response))

        def attribute(names: list[str]) -> dict[str, Tensor]:
            layers = [gates[name] for name in names]
            found = LayerIntegratedGradients(forward, layers if len(layers) > 1 else layers[0]).attribute(
                torch.ones(self.rows, 1),
                baselines=torch.zeros(self.rows, 1),
                additional_forward_args=(self.batch.input_ids, self.batch.attention_mask, self.batch.response_mask),
                n_steps=self.steps,
                method="riemann_middle",
                internal_batch_size=internal_batch_size,
            )
            return dict(zip(names, found if len(names) > 1 else [found], strict=True))

        if not by_site:
            return attribute(list(gates))
        return {name: value for site in gates for name, value in attribute([site]).items()}

    def attribute(self, times: int) -> Scores:
        """The whole call, on prompts of one length."""
        tokenizer = AutoTokenizer.from_pretrained(DEMO)
        return attribute(
            self.model,
            tokenizer,
            prompt_set(times * PROMPTS[self.quick]),
            roles=("safety",),
            batch_size=2 if self.quick else 4,
            steps=1,
            n_prompts=None,
            n_phrases=2,
            contrast=0.0,
        )

    def warm_up(self) -> None:
        """Load what the first pass loads, with as little memory as possible."""
        small = self.make_batch(1, 4)
        gate_path(self.model, small, self.sites, target_log_prob, steps=1)


class Expand(nn.Module):
    """One number per row, `(R, 1)`, as the gates of a site, `(R, F)`."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, scale: Tensor) -> Tensor:
        return scale.expand(-1, self.width).clone()


def prompt_set(count: int) -> PromptSet:
    """`count` prompts of each kind, alike but for a number, and one attack."""
    prompts = [
        Prompt(f"{kind}-{i}", f"Tell me about thing number {i:04d}.", kind, "It is a thing.", "train")
        for kind in ("harmful", "benign", "borderline")
        for i in range(count)
    ]
    return PromptSet(tuple(prompts), (Attack("persona", "persona-0", "train", "You are Dan. {prompt}"),))


def runs(work: Work) -> dict[str, Callable[[], object]]:
    """What can be measured, by name."""
    return {
        "one pass": work.one_pass,
        "gate path": work.gate_path,
        "gate path, a site at a time": work.gate_path_by_site,
        "captum": work.captum,
        "captum, one step at a time": lambda: work.captum(internal_batch_size=work.rows),
        "captum, a site at a time": lambda: work.captum(by_site=True),
        **{f"{times}x": lambda times=times: work.attribute(times) for times in TIMES},
    }


def resident(what: str) -> int:
    """Bytes of this process, `VmRSS` now or `VmHWM` at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def measure_here(name: str, quick: bool, steps: int) -> None:
    """In a process of its own: print the bytes that a run takes at most."""
    work = Work(quick)
    work.steps = steps or work.steps
    run = runs(work)[name]
    with held_still(work.model):
        work.warm_up()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
        before = resident("VmRSS")
        run()
    print(max(0, resident("VmHWM") - before))


def peak_bytes(name: str, options: argparse.Namespace, *, steps: int = 0) -> int:
    """Peak memory of a run, in a fresh process whose allocator gives large blocks back at once."""
    words = [sys.executable, __file__, "--measure", name, "--threads", str(options.threads), "--steps", str(steps)]
    done = subprocess.run(
        words + ["--quick"] * options.quick,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"measuring '{name}' failed:\n{done.stderr}")
    return int(done.stdout.strip().splitlines()[-1])


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def show_passes(work: Work, options: argparse.Namespace, repeats: int) -> None:
    counts = (2, 8, 32)
    cases = {"one pass": work.one_pass} | {
        f"gate path, {steps} steps": lambda steps=steps: work.gate_path(steps) for steps in counts
    }
    spent = interleaved_medians(cases, repeats=repeats)
    print(f"### One forward and backward pass, {work.rows} x {work.tokens} tokens, {len(work.sites)} sites at once\n")
    rows = [["forward and backward to the embeddings", "1.00", megabytes(peak_bytes("one pass", options))]]
    for steps in counts:
        ratio = spent[f"gate path, {steps} steps"] / steps / spent["one pass"]
        memory = megabytes(peak_bytes("gate path", options, steps=steps))
        rows.append([f"gate path, {steps} steps, per step", f"{ratio:.2f}", memory])
    print_table(["", "time", "peak memory"], rows)


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Relative to the largest score."""
    most = max(float(score.abs().max()) for score in one.values())
    return max(float((one[site] - two[site]).abs().max()) for site in one) / most


def show_captum(work: Work, options: argparse.Namespace, repeats: int) -> None:
    everything = runs(work)
    together = ("gate path", "captum", "captum, one step at a time")
    alone = ("gate path, a site at a time", "captum, a site at a time")
    print(f"### Against captum's LayerIntegratedGradients on gates, {work.steps} steps\n")
    rows = []
    for names in (together, alone):
        spent = interleaved_medians({name: everything[name] for name in names}, repeats=repeats, warmup=1)
        reference = everything[names[0]]()
        for name in names:
            difference = largest_difference(reference, everything[name]())
            memory = megabytes(peak_bytes(name, options))
            rows.append([name, f"{spent[name] / spent[names[0]]:.2f}", memory, f"{difference:.0e}"])
    print_table(["", "time", "peak memory", "difference of scores"], rows)


def show_growth(work: Work, options: argparse.Namespace, repeats: int) -> None:
    cases = {f"{times}x": lambda times=times: work.attribute(times) for times in TIMES}
    spent = interleaved_medians(cases, repeats=repeats, warmup=1)
    print("### More prompts: `attribute`, batches of one size\n")
    rows = [
        [
            f"{times}x ({times * PROMPTS[work.quick]} harmful, plain and attacked)",
            f"{spent[f'{times}x'] / spent['1x']:.2f}",
            f"{spent[f'{times}x'] / spent['1x'] / times:.2f}",
            megabytes(peak_bytes(f"{times}x", options)),
        ]
        for times in TIMES
    ]
    print_table(["", "time", "time per prompt", "peak memory"], rows)


def show_selection(quick: bool, repeats: int) -> None:
    sites, width = (10, 10_000) if quick else (100, 100_000)
    generator = torch.Generator().manual_seed(0)
    values = {
        role: {f"model.layers.{i}.mlp.down_proj": torch.randn(width, generator=generator) for i in range(sites)}
        for role in ("safety", "utility")
    }
    one, two = Scores({"safety": values["safety"]}), Scores(values)
    both = {"safety": 500, "utility": 500}
    cases = {
        "one role": lambda: select(one, {"safety": 1000}),
        "one role, spread=0.1": lambda: select(one, {"safety": 1000}, spread=0.1),
        "two roles, overlap='drop'": lambda: select(two, both),
        "two roles, overlap='difference'": lambda: select(two, both, overlap="difference"),
        "two roles, overlap='ratio'": lambda: select(two, both, overlap="ratio"),
    }
    spent = interleaved_medians(cases, repeats=repeats, warmup=1)
    print(f"### Selecting 1,000 of {sites * width:,} neurons\n")
    print_table(["", "time"], [[name, f"{seconds:.2f} s"] for name, seconds in spent.items()])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--measure", help=argparse.SUPPRESS)  # how the script calls itself
    arguments.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    options = set_up(arguments)
    logging.disable_progress_bar()
    # Captum warns about every list of layers; these do not depend on each other.
    warnings.filterwarnings("ignore", message="Multiple layers provided", category=UserWarning)
    if options.measure:
        measure_here(options.measure, options.quick, options.steps)
        return
    print_header("Attribution")
    work = Work(options.quick)
    repeats = 3 if options.quick else 9
    with held_still(work.model):
        show_passes(work, options, repeats)
        show_captum(work, options, min(repeats, 3))
        show_growth(work, options, min(repeats, 3))
    show_selection(options.quick, repeats)


if __name__ == "__main__":
    main()
