"""What users of PEFT do around a model: compile, checkpoint, cast, place, distribute, export."""

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, dispatch_model
from adapters import randomize, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import PeftModel, get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from neurontune_peft import NeuronTuneConfig


def logits(model: nn.Module, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(), **options).logits


def trainable(model_type: str = "llama") -> PeftModel:
    base = tiny_model(model_type)
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=some_neurons(base)))
    randomize(model)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    return {name.replace("module.", ""): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    expected = gradients(trainable().train())
    model = trainable().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_one_graph_serves_every_strength_count_and_scale():
    torch._dynamo.reset()
    model = tuned_model()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(input_ids=tokens())
    frames = counter.frame_count
    for change in (
        lambda: model.set_strength(0.5),
        lambda: model.set_neuron_counts(safety=2),
        lambda: randomize(model, seed=3),
        lambda: model.set_strength(2.0, role="safety"),
    ):
        change()
        with torch.no_grad():
            expected = model(input_ids=tokens()).logits
        torch.testing.assert_close(compiled(input_ids=tokens()).logits, expected)
    assert counter.frame_count == frames


def test_a_compiled_base_follows_the_strengths_of_its_rows():
    torch._dynamo.reset()
    model = tuned_model()
    counter = CompileCounter()
    compiled = torch.compile(model.get_base_model(), backend=counter)
    for strengths in ([0.0, 1.0], [2.0, 0.5], [0.0, 0.0]):
        with model.strength_per_row(strengths):
            torch.testing.assert_close(compiled(tokens()).logits, logits(model))
    torch.testing.assert_close(compiled(tokens()).logits, logits(model))


def test_autocast_computes_in_half_precision_and_trains_in_float32():
    model = trainable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    deltas = [p for n, p in model.named_parameters() if "neurontune_delta" in n]
    assert all(delta.dtype == delta.grad.dtype == torch.float32 for delta in deltas)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = logits(model)
    torch.testing.assert_close(half.float(), logits(model), rtol=0.1, atol=0.05)


def test_a_device_map_with_offloaded_layers_computes_the_same():
    model = tuned_model()
    expected = logits(model)
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    placed = dispatch_model(model.get_base_model(), device_map=dict.fromkeys(names, "cpu"), main_device="cpu")
    with torch.no_grad():
        assert torch.equal(placed(tokens()).logits, expected)


def test_accelerate_prepares_and_trains_a_model(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = trainable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    first = last = None
    for _ in range(10):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        first, last = first or loss.item(), loss.item()
    assert last < first
    accelerator.unwrap_model(model).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert torch.equal(logits(again), logits(model.eval()))


def test_a_model_with_an_adapter_can_be_exported():
    model = tuned_model().get_base_model()
    model.config.use_cache = False

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    program = torch.export.export(Logits().eval(), (tokens(),), strict=False)
    torch.testing.assert_close(program.module()(tokens()), logits(model))


def test_weight_decay_pulls_the_scales_towards_the_base_model():
    model = trainable()
    deltas = [p for p in model.parameters() if p.requires_grad]
    before = sum(float(delta.detach().abs().sum()) for delta in deltas)
    optimizer = torch.optim.AdamW(deltas, lr=0.1, weight_decay=0.5)
    for delta in deltas:
        delta.grad = torch.zeros_like(delta)
    optimizer.step()
    assert sum(float(delta.detach().abs().sum()) for delta in deltas) < before


# Two processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def join(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)


def train_steps(model: nn.Module, rank: int) -> None:
    """Three steps of plain descent on this process's half of the batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    rows = tokens(batch=4)[2 * rank : 2 * rank + 2]
    for _ in range(3):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run_ddp(rank: int, port: int, directory: str) -> None:
    join(rank, port)
    model = trainable()
    train_steps(DistributedDataParallel(model), rank)
    if rank == 0:
        model.save_pretrained(directory)
    torch.distributed.destroy_process_group()


def run_fsdp1(rank: int, port: int, directory: str) -> None:
    join(rank, port)
    model = trainable()
    sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    train_steps(sharded, rank)
    with FullyShardedDataParallel.summon_full_params(sharded, writeback=False):
        if rank == 0:
            copy.deepcopy(sharded.module).save_pretrained(directory)
    torch.distributed.destroy_process_group()


def run_fsdp2(rank: int, port: int, directory: str) -> None:
    join(rank, port)
    model = trainable()
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train_steps(model, rank)
    full = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in model.state_dict().items()
        if "neurontune" in name
    }
    if rank == 0:
        plain = trainable()
        plain.load_state_dict(full, strict=False)
        plain.save_pretrained(directory)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("run", [run_ddp, run_fsdp1, run_fsdp2], ids=["ddp", "fsdp1", "fsdp2"])
def test_two_processes_train_what_one_process_trains_on_the_whole_batch(tmp_path, run):
    mp.spawn(run, args=(free_port(), str(tmp_path)), nprocs=2)
    whole = trainable()
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        whole(input_ids=tokens(batch=4), labels=tokens(batch=4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = PeftModel.from_pretrained(tiny_model(), Path(tmp_path))
    for name, parameter in whole.named_parameters():
        if "neurontune_delta" in name:
            torch.testing.assert_close(dict(found.named_parameters())[name], parameter, rtol=1e-4, atol=1e-5)
