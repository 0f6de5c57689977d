"""NEURONTUNE and its controls: each a function that makes a method ready to be measured, and cleans up after it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel
from peft.helpers import rescale_adapter_scale
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from neurontune_peft.evaluation.compare.bench import Bench, Candidate, Dial, Trained, attached
from neurontune_peft.evaluation.compare.flagged import (
    behind_trigger,
    canned_refusal,
    fitted_numbers,
    fitted_on,
    for_flagged,
    note_of,
)
from neurontune_peft.evaluation.compare.joint import Weights, joint_train
from neurontune_peft.evaluation.compare.steering import Unsteered, block_names, refusal_direction, steered
from neurontune_peft.evaluation.compare.system_prompt import with_system_prompt
from neurontune_peft.neurons import Neurons
from neurontune_peft.sites import find_sites
from neurontune_peft.training import Log, MetaConfig, for_flagged_requests, meta_train
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.tuner import NeuronTuneConfig

IA3_RATE, LORA_RATE = 0.1, 0.003  # tried first; `ours`
RANK = 8

Run = Callable[[Bench, str, int], AbstractContextManager[Candidate]]


@dataclass(frozen=True)
class Method:
    """
    A way to make a model safer.

    Args:
        run (`Callable`): From the bench, the method's name and a seed to a context with a [`Candidate`].
        dial (`str`, *optional*, defaults to `"strength"`): What its dial is called; `None` without one.
        seeded (`bool`, *optional*, defaults to `True`): Whether its result depends on the seed.
        triggered (`bool`, *optional*, defaults to `False`): Whether it needs a trigger, which takes enough prompts.
    """

    run: Run
    dial: str | None = "strength"
    seeded: bool = True
    triggered: bool = False


@contextmanager
def base(bench: Bench, name: str, seed: int) -> Iterator[Candidate]:
    """The model as it is."""
    yield Candidate(bench.model, base=bench.model)


@contextmanager
def scaled(
    bench: Bench,
    name: str,
    seed: int,
    *,
    attribution: Any = None,
    order: str | None = None,
    layer_matched: bool = False,
    tries: bool = True,
    dynamic: bool = False,
) -> Iterator[Candidate]:
    """
    NEURONTUNE: trained scales on selected neurons, its strength the dial.

    Args:
        bench ([`Bench`]): What every method gets.
        name (`str`): Name of the method.
        seed (`int`): Seed.
        attribution (`str` or `Callable`, *optional*): Scores neurons; as the comparison does when left out.
        order (`str`, *optional*): Order of meta-learning; that of the options when left out.
        layer_matched (`bool`, *optional*, defaults to `False`): Random neurons, as many in each site.
        tries (`bool`, *optional*, defaults to `True`): Whether learning rates are tried.
        dynamic (`bool`, *optional*, defaults to `False`): Scales of flagged requests alone, as a trigger flags them.
    """
    if dynamic:
        neurons, scoring = bench.neurons_to_read(seed)
    else:
        neurons, scoring = bench.neurons(seed, **({} if attribution is None else {"method": attribution}))
    if layer_matched:
        neurons = neurons.layer_matched_random(seed)

    @contextmanager
    def train(config: MetaConfig) -> Iterator[tuple[PeftModel, Log]]:
        with attached(bench, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons)) as model:
            options = config if order is None else _in_order(config, order)
            _, prompts = fitted_on(bench, model, seed) if dynamic else (None, bench.prompts)
            yield model, meta_train(model, bench.tokenizer, prompts, options, chat_template=bench.chat_template)

    strong = for_flagged(bench.config) if dynamic else None
    rate = for_flagged_requests().lr if dynamic else bench.config.lr
    with bench.trained(name, seed, train, rate=rate, tries=tries, options=strong) as made:
        if dynamic:
            made = replace(made, note=note_of(made.model))
        ready = _adapter(made, made.model.strength, scoring=scoring)
        yield replace(ready, numbers=ready.numbers + fitted_numbers(made.model)) if dynamic else ready


@contextmanager
def fixed(bench: Bench, name: str, seed: int) -> Iterator[Candidate]:
    """One multiplier, the dial, on the safety neurons that NEURONTUNE trains; utility neurons are left alone."""
    neurons, seconds = bench.neurons(seed)
    ranked = {role: neurons.ranked(role) for role in neurons.roles if role != "utility" or len(neurons.roles) == 1}
    chosen = Neurons.from_ranked(ranked, widths=neurons.widths)
    with attached(bench, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=chosen)) as model:
        with torch.no_grad():
            for delta in find_deltas(model, {}).parameters:
                delta.fill_(1.0)
        yield Candidate(
            model,
            lambda multiplier: model.strength(multiplier - 1),
            numbers=1,
            bytes=_file_size(model),
            seconds=seconds,
        )


@contextmanager
def ia3(bench: Bench, name: str, seed: int, *, options: MetaConfig | None = None) -> Iterator[Candidate]:
    """IA3 on every neuron of every site, trained jointly; strength t makes a factor `1 + t * (factor - 1)`."""
    sites = _linear_sites(bench)
    config = IA3Config(task_type="CAUSAL_LM", target_modules=sites, feedforward_modules=sites)
    with bench.trained(name, seed, partial(_joint, bench, config), rate=IA3_RATE, options=options) as made:
        yield _adapter(made, partial(_ia3_strength, made.model))


@contextmanager
def lora(bench: Bench, name: str, seed: int, *, options: MetaConfig | None = None) -> Iterator[Candidate]:
    """LoRA of rank 8 on every site, trained jointly; the strength multiplies its scaling."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=_linear_sites(bench), r=RANK, lora_alpha=RANK)
    with bench.trained(name, seed, partial(_joint, bench, config), rate=LORA_RATE, options=options) as made:
        yield _adapter(made, partial(rescale_adapter_scale, made.model))


@contextmanager
def steering(bench: Bench, name: str, seed: int) -> Iterator[Candidate]:
    """The refusal direction, times a coefficient, added to the output of the middle block (arXiv 2406.11717)."""
    start = time.monotonic()
    blocks = block_names(bench.model)
    block = blocks[len(blocks) // 2]
    direction = refusal_direction(
        bench.model, bench.tokenizer, bench.prompts, block, chat_template=bench.chat_template
    )
    yield Candidate(
        bench.model,
        partial(steered, bench.model, block, direction),
        numbers=direction.numel(),
        bytes=direction.numel() * direction.element_size(),
        seconds=time.monotonic() - start,
        base=Unsteered(bench.model, block),
        note=f"at {block}",
    )


@contextmanager
def system_prompt(bench: Bench, name: str, seed: int) -> Iterator[Candidate]:
    """A safety system prompt in front of every chat; the KL is not measured, as its prompts differ."""
    template, note = with_system_prompt(bench.tokenizer, bench.system_prompt, chat_template=bench.chat_template)
    yield Candidate(bench.model, bytes=len(bench.system_prompt.encode()), chat_template=template, note=note)


METHODS = {
    "base": Method(base, dial=None, seeded=False),
    "neurontune": Method(partial(scaled, tries=False)),
    "neurontune-dynamic": Method(partial(scaled, tries=False, dynamic=True), triggered=True),
    "neurontune-second": Method(partial(scaled, order="second")),
    "neurontune-first": Method(partial(scaled, order="first")),
    "neurontune-none": Method(partial(scaled, order="none")),
    "random": Method(partial(scaled, attribution="random")),
    "layer-random": Method(partial(scaled, layer_matched=True)),
    "fixed": Method(fixed, dial="multiplier"),
    "ia3": Method(ia3),
    "lora": Method(lora),
    "ia3-dynamic": Method(partial(behind_trigger, method=ia3), triggered=True),
    "lora-dynamic": Method(partial(behind_trigger, method=lora), triggered=True),
    "canned-refusal": Method(canned_refusal, dial=None, triggered=True),
    "steering": Method(steering, dial="coefficient", seeded=False),
    "system-prompt": Method(system_prompt, dial=None, seeded=False),
}


@contextmanager
def _joint(bench: Bench, peft_config: PeftConfig, config: MetaConfig) -> Iterator[tuple[PeftModel, Log]]:
    with attached(bench, peft_config) as model:
        yield model, joint_train(model, bench.tokenizer, bench.prompts, config, chat_template=bench.chat_template)


def _in_order(config: MetaConfig, order: Any) -> MetaConfig:
    """A simulated fine-tuning is part of the inner loop, which order `"none"` does not have."""
    return replace(config, order=order, finetune_steps=0 if order == "none" else config.finetune_steps)


def _linear_sites(bench: Bench) -> list[str]:
    sites = [name for name, site in find_sites(bench.model).items() if site.kind == "linear"]
    if not sites:
        raise ValueError(
            "got a model whose sites are all fused experts; expected linear modules, which IA3 and LoRA need; leave "
            "these methods out"
        )
    return sites


@contextmanager
def _ia3_strength(model: PeftModel, strength: float) -> Iterator[None]:
    weights = Weights.of(model)
    with weights.replaced_by([1 + strength * (factor.detach() - 1) for factor in weights.parameters]):
        yield


def _adapter(made: Trained, turned: Dial, *, scoring: float = 0.0) -> Candidate:
    return Candidate(
        made.model,
        turned,
        numbers=sum(parameter.numel() for parameter in made.model.parameters() if parameter.requires_grad),
        bytes=_file_size(made.model),
        seconds=scoring + made.seconds,
        learning_rate=made.learning_rate,
        note=made.note,
    )


def _file_size(model: PeftModel) -> int:
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, save_embedding_layers=False)
        return Path(directory, SAFETENSORS_WEIGHTS_NAME).stat().st_size
