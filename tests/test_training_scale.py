"""Larger models and several processes: accumulation, recomputed layers, bfloat16, trackers."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from helpers import tiny_llama
from peft import get_peft_model
from safetensors.torch import load_file
from training_helpers import NEURONS, PROMPTS, SITES, SMALL, TOKENIZER, peft_model, toy_deltas, values_of

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.training import Log, MetaConfig, loop, meta_train
from neurontune_peft.training.inner import Task
from neurontune_peft.training.outer import Outer, mean_of
from neurontune_peft.training.state import LoopState

DEALT = replace(SMALL, accumulation=2, steps=2, kl_budget=0.05)
CHILD = """
import sys
from accelerate import Accelerator
from safetensors.torch import save_file
from training_helpers import PROMPTS, TOKENIZER, peft_model, values_of
from test_training_scale import DEALT
from neurontune_peft.training import meta_train
accelerator = Accelerator(cpu=True)
model = peft_model()
log = meta_train(model, TOKENIZER, PROMPTS, DEALT, checkpoint=f"{sys.argv[1]}/checkpoint")
save_file({"values": values_of(model)}, f"{sys.argv[1]}/{accelerator.process_index}.safetensors")
log.save(f"{sys.argv[1]}/{accelerator.process_index}.json")
accelerator.end_training()
"""


class Memory(GeneralTracker):
    """A tracker that remembers."""

    name, requires_logging_directory = "memory", False

    def __init__(self):
        super().__init__()
        self.seen = []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **options):
        self.seen.append((step, values))


def test_two_processes_learn_what_one_learns(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    one = peft_model()
    log = meta_train(one, TOKENIZER, PROMPTS, DEALT)
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    both = [load_file(tmp_path / f"{rank}.safetensors")["values"] for rank in range(2)]
    logs = [Log.load(tmp_path / f"{rank}.json") for rank in range(2)]
    assert torch.equal(*both)
    assert logs[0] == logs[1]
    torch.testing.assert_close(both[0], values_of(one), atol=1e-5, rtol=0)
    assert [step.family for step in logs[0].steps] == [step.family for step in log.steps]
    assert [step.safety for step in logs[0].steps] == pytest.approx([step.safety for step in log.steps], rel=1e-5)
    assert (tmp_path / "checkpoint").exists()


def test_processes_that_cannot_share_a_step_evenly_are_refused(monkeypatch):
    monkeypatch.setattr("neurontune_peft.training.parallel.process", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"accumulation=3 with 2 processes.*multiple of 2"):
        meta_train(peft_model(), TOKENIZER, PROMPTS, replace(SMALL, accumulation=3))


def test_accumulation_averages_the_tasks_of_a_step():
    deltas = toy_deltas(torch.zeros(2))
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=1.0))
    drawn = []

    def draw(number):
        drawn.append(number)

        def loss(values):
            return number * values[0].sum()

        return Task(f"f{number}", loss, loss, lambda values: {"kl": values[0].sum(), "nll": values[0].sum() * 0})

    config = MetaConfig(order="none", steps=4, lr=1.0, accumulation=3, utility_weight=0.0)
    loop.advance(state, draw, config)
    assert drawn == [0, 1, 2]
    assert deltas.parameters[0].tolist() == [-1.0, -1.0]
    assert state.history[0].family == "f0+f1+f2"
    loop.advance(state, draw, config)
    assert drawn[3:] == [3, 4, 5]


def test_the_mean_of_tasks_is_the_mean_of_everything():
    outers = [Outer(name, [torch.tensor([g])], g, {"kl": g}, (g, 2 * g)) for name, g in (("a", 1.0), ("b", 3.0))]
    mean = mean_of(outers)
    assert (mean.family, mean.safety, mean.costs, mean.inner) == ("a+b", 2.0, {"kl": 2.0}, (2.0, 4.0))
    assert mean.gradients[0].tolist() == [2.0]


@pytest.mark.parametrize("options", [{"order": "first"}, {"order": "none"}, {"nested": True, "kl_budget": 0.05}])
def test_recomputed_layers_change_time_but_no_bit(options):
    counts = []
    results = []
    for enabled in (False, True):
        model = peft_model()
        if enabled:
            model.base_model.model.gradient_checkpointing_enable()
        calls = []
        layer = model.base_model.model.model.layers[0]
        layer.mlp.register_forward_pre_hook(
            lambda module, args, calls=calls: calls.extend([module.training] * torch.is_grad_enabled())
        )
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=2, **options))
        assert not any(calls)
        assert "forward" not in layer.__dict__
        counts.append(len(calls))
        results.append(values_of(model))
    assert torch.equal(*results)
    assert counts[1] == 2 * counts[0]


def test_recomputed_layers_and_second_order_are_refused():
    model = peft_model()
    model.base_model.model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"order='second'.*gradient_checkpointing_disable"):
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, order="second"))


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_a_bfloat16_base_trains_float32_deltas(order):
    base = tiny_llama().to(torch.bfloat16)
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=NEURONS))
    log = meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, order=order, steps=20, lr=0.1, utility_weight=0.1))
    values = values_of(model)
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())
    assert base.get_submodule(SITES[0]).base_layer.weight.dtype == torch.bfloat16
    first, last = (sum(step.safety for step in part) / 4 for part in (log.steps[:4], log.steps[-4:]))
    assert last < first


def test_only_the_deltas_get_gradients(monkeypatch):
    model = peft_model()
    asked = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, of, **o: (asked.extend(of), original(out, of, **o))[1])
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=1))
    assert {tensor.numel() for tensor in asked} == {18}
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"base_model.model.{site}.neurontune_delta.default" for site in SITES
    ]


def test_trackers_of_accelerate_get_every_step():
    seen = []
    config = replace(SMALL, steps=2, kl_budget=0.05)
    meta_train(peft_model(), TOKENIZER, PROMPTS, config, track=lambda values, step: seen.append((step, values)))
    assert [step for step, _ in seen] == [0, 1]
    names = {"safety", "utility", "kl", "nll", "inner/0", "inner/1", "value/kl_budget", "multiplier/kl_budget"}
    assert set(seen[0][1]) == names
    tracker = Memory()
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("run")
    meta_train(peft_model(), TOKENIZER, PROMPTS, config, track=accelerator.log)
    assert tracker.seen == seen
