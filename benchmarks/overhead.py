"""
What does an attached adapter cost? Ratios to the bare model, measured side by side in one run.

    python benchmarks/overhead.py [--quick] [--threads N]
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved_medians, parser, print_header, print_table, set_up
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites

ROWS = 8  # requests of the mixed batch, each with an adapter of its own


def spread_neurons(model: nn.Module, per_site: int) -> Neurons:
    """The same number of neurons at every site, evenly spread."""
    sites = {site.name: site.width for site in find_sites(model).values()}
    chosen = [(name, i * width // per_site) for name, width in sites.items() for i in range(per_site)]
    return Neurons.from_ranked({"safety": chosen}, widths=sites)


def randomized(model: PeftModel) -> PeftModel:
    for name, parameter in model.named_parameters():
        if "neurontune_delta" in name or "lora_B" in name or "ia3" in name:
            nn.init.normal_(parameter, mean=float("ia3" in name), std=0.1)
    return model.eval()


def neurontune(make: Callable[[], nn.Module], per_site: int, *, adapters: int = 1) -> PeftModel:
    base = make()
    config = {"task_type": "CAUSAL_LM", "neurons": spread_neurons(base, per_site)}
    model = get_peft_model(base, NeuronTuneConfig(**config), adapter_name="0")
    for number in range(1, adapters):
        model.add_adapter(str(number), NeuronTuneConfig(**config))
    return randomized(model)


def variants(make: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    """The bare model and the methods, each on its own copy; IA3 and LoRA act on the same modules."""
    names = sorted({name.rsplit(".", 1)[-1] for name in find_sites(make())})
    merged = neurontune(make, 128)
    merged.merge_adapter()
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=names, feedforward_modules=names)
    return {
        "bare": make().eval(),
        "NEURONTUNE, 128 per site": neurontune(make, 128),
        "NEURONTUNE, 1,024 per site": neurontune(make, 1024),
        "NEURONTUNE, 128, merged": merged,
        "IA3": randomized(get_peft_model(make(), ia3)),
        "LoRA r=8": randomized(get_peft_model(make(), LoraConfig(task_type="CAUSAL_LM", target_modules=names, r=8))),
    }


def saved_bytes(run: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(seen.values())


def layer_model(quick: bool) -> Callable[[], LlamaForCausalLM]:
    """One layer of a 7B-shaped Llama."""
    size = (
        {"hidden_size": 256, "intermediate_size": 1376} if quick else {"hidden_size": 4096, "intermediate_size": 11008}
    )
    config = LlamaConfig(**size, num_hidden_layers=1, num_attention_heads=size["hidden_size"] // 64, vocab_size=128)
    return lambda: seeded(LlamaForCausalLM, config)


def whole_model(quick: bool) -> Callable[[], LlamaForCausalLM]:
    """A small whole model."""
    config = LlamaConfig(
        hidden_size=128 if quick else 512,
        intermediate_size=1376,
        num_hidden_layers=2 if quick else 8,
        num_attention_heads=8,
        vocab_size=1000,
    )
    return lambda: seeded(LlamaForCausalLM, config)


def seeded(cls: type, config: object) -> nn.Module:
    torch.manual_seed(0)
    return cls(config).eval()


def mlp_cases(models: dict[str, nn.Module], tokens: int) -> dict[str, Callable[[], object]]:
    """The MLP output projection of the first layer, alone: where the methods differ."""
    cases: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        projection = next(module for path, module in model.named_modules() if path.endswith("layers.0.mlp.down_proj"))
        hidden = torch.randn(1, tokens, projection.in_features)
        cases[name] = torch.no_grad()(lambda projection=projection, hidden=hidden: projection(hidden))
    return cases


def model_cases(models: dict[str, nn.Module], batch: int, tokens: int) -> dict[str, Callable[[], object]]:
    ids = torch.randint(3, 100, (batch, tokens))
    return {
        name: torch.no_grad()(lambda model=model: model(input_ids=ids, use_cache=False))
        for name, model in models.items()
    }


def backward_cases(models: dict[str, nn.Module], tokens: int) -> dict[str, Callable[[], object]]:
    ids = torch.randint(3, 100, (2, tokens))

    def step(model: nn.Module) -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    return {
        name: lambda model=model: step(model)
        for name, model in models.items()
        if name != "bare" and "merged" not in name
    }


def show_forward(title: str, cases: dict[str, dict[str, Callable[[], object]]], repeats: int) -> None:
    """One column per kind of call, ratios to the first row."""
    columns = {kind: interleaved_medians(runs, repeats=repeats) for kind, runs in cases.items()}
    rows = list(dict.fromkeys(name for column in columns.values() for name in column))
    reference = {kind: next(iter(column.values())) for kind, column in columns.items()}
    print(f"### {title}\n")
    print_table(
        ["", *columns],
        [
            [
                name,
                *(
                    f"{column[name] / reference[kind]:.3f}" if name in column else "–"
                    for kind, column in columns.items()
                ),
            ]
            for name in rows
        ],
    )


def show_memory(models: dict[str, nn.Module], tokens: int) -> None:
    ids = torch.randint(3, 100, (2, tokens))
    rows = []
    for name, model in models.items():
        if name != "bare" and "merged" not in name:
            kept = saved_bytes(lambda model=model: model(input_ids=ids, labels=ids).loss)
            layer = next(m for path, m in model.named_modules() if path.endswith("layers.0.mlp.down_proj"))
            hidden = torch.randn(2, tokens, layer.in_features, requires_grad=True)
            alone = saved_bytes(lambda layer=layer, hidden=hidden: layer(hidden))
            rows.append([name, f"{alone / 1e6:.3f} MB", f"{kept / 1e6:.1f} MB"])
    print("### Saved for the backward pass\n")
    print_table(["", "one projection", "whole model"], rows)


def show_mixed(make: Callable[[], nn.Module], tokens: int, repeats: int) -> None:
    """Eight requests, each with its own of eight adapters, against all with one adapter."""
    model = neurontune(make, 128, adapters=ROWS)
    names = [str(number) for number in range(ROWS)]
    cases = {}
    for kind, length in (("prefill", tokens), ("decode", 1)):
        ids = torch.randint(3, 100, (ROWS, length))
        cases[kind] = {
            "one adapter": torch.no_grad()(lambda ids=ids: model(input_ids=ids, use_cache=False)),
            f"{ROWS} adapters": torch.no_grad()(
                lambda ids=ids: model(input_ids=ids, use_cache=False, adapter_names=names)
            ),
        }
    show_forward("Mixed batch (ratio to one adapter)", cases, repeats)


def show_experts(quick: bool, repeats: int) -> None:
    config = MixtralConfig(
        hidden_size=128 if quick else 1024,
        intermediate_size=256 if quick else 3584,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_local_experts=8,
        vocab_size=1000,
    )
    models = {
        "bare": seeded(MixtralForCausalLM, config),
        "K=16": neurontune(lambda: seeded(MixtralForCausalLM, config), 16),
        "K=1,024": neurontune(lambda: seeded(MixtralForCausalLM, config), 1024),
    }
    cases = {kind: model_cases(models, 1, length) for kind, length in (("prefill", 64), ("decode", 1))}
    show_forward("Fused experts (8 experts, one layer, whole model)", cases, repeats)


def adapter_tensors(neurons: Neurons) -> dict[str, torch.Tensor]:
    """An adapter file of these neurons: a model on the meta device has no values to save."""
    tensors = {}
    for site, index in neurons.indices["safety"].items():
        values = {"delta": torch.zeros(len(index)), "index": index.int(), "rank": neurons.ranks["safety"][site].int()}
        tensors |= {f"base_model.model.{site}.neurontune_{name}": value for name, value in values.items()}
    return tensors


def show_attach(quick: bool) -> None:
    """Attaching to a 7B-shaped model on the meta device, and loading an adapter of 30,000 neurons."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=2 if quick else 32, num_attention_heads=32
    )

    def make() -> nn.Module:
        with torch.device("meta"):
            return LlamaForCausalLM(config)

    start = time.perf_counter()
    make()
    bare = time.perf_counter() - start
    base, fresh = make(), make()
    neurons = spread_neurons(base, 938)
    start = time.perf_counter()
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    attach = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as directory:
        model.peft_config["default"].save_pretrained(directory)
        save_file(adapter_tensors(neurons), Path(directory, "adapter_model.safetensors"))
        start = time.perf_counter()
        PeftModel.from_pretrained(fresh, directory, low_cpu_mem_usage=True)
        load = time.perf_counter() - start
    print("### Attaching to a 7B-shaped model on the meta device\n")
    print_table(
        ["building the bare model", "attaching 30,016 neurons", "loading their adapter"],
        [[f"{bare:.2f} s", f"{attach:.2f} s", f"{load:.2f} s"]],
    )


def main() -> None:
    from overhead_dynamic import show_dynamic  # which builds on this module

    options = set_up(parser(__doc__))
    quick = options.quick
    repeats = 3 if quick else 41
    print_header("Overhead")
    make_layer, make_whole = layer_model(quick), whole_model(quick)
    layer, whole = variants(make_layer), variants(make_whole)
    prefill = 32 if quick else 128
    show_forward(
        "7B-shaped MLP output projection (ratio to the bare one)",
        {"prefill, 128 tokens": mlp_cases(layer, prefill), "decode, 1 token": mlp_cases(layer, 1)},
        repeats,
    )
    show_forward(
        "Small whole model (ratio to the bare one)",
        {"prefill, 4 x 64": model_cases(whole, 4, 64), "decode, 4 x 1": model_cases(whole, 4, 1)},
        repeats,
    )
    show_forward("Small whole model, forward and backward", {"2 x 64": backward_cases(whole, 64)}, repeats)
    show_memory(whole, 64)
    show_mixed(make_whole, 64, repeats)
    show_dynamic(make_whole, 4, 64, repeats)
    show_experts(quick, repeats)
    show_attach(quick)


if __name__ == "__main__":
    main()
