"""What exports cost: memory and time of a streamed merge of a model shaped like a 7B one, and sizes of adapters."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import parser, print_header, print_table, set_up
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig

from neurontune_peft import Neurons, NeuronTuneConfig
from neurontune_peft.sites.find import empty_model

# Llama 2 7B.
SEVEN_B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
QUICK = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
CHILD = """
import json, re, sys, time
from pathlib import Path
from neurontune_peft.export import export_adapter
def highest():  # getrusage would count the parent before exec
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
adapter, out, to, model = sys.argv[1:]
ready, start = highest(), time.perf_counter()
export_adapter(adapter, out, to=to, model=model, check="weights")
print(json.dumps({"ready": ready, "peak": highest(), "seconds": time.perf_counter() - start}))
"""


def write_base(directory: Path, config: LlamaConfig, *, per_shard: int) -> int:
    """Write random bfloat16 weights in shards of so many layers, never whole in memory; returns their bytes."""
    directory.mkdir()
    config.save_pretrained(directory)
    shapes = {name: parameter.shape for name, parameter in empty_model(config).named_parameters()}
    block = torch.randn(2**20).to(torch.bfloat16)
    files: dict[str, str] = {}
    groups: dict[int, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        groups.setdefault(int(parts[2]) // per_shard + 1 if "layers" in parts else 0, []).append(name)
    for number, names in groups.items():
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:
            count = shapes[name].numel()
            tensors[name] = block.repeat(count // block.numel() + 1)[:count].view(shapes[name])
        save_file(tensors, directory / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def write_adapter(directory: Path, config: LlamaConfig, *, share: float) -> int:
    """An adapter on a share of the neurons of each layer, with scales of about 1.5; returns their number."""
    model = empty_model(config)
    width = config.intermediate_size
    sites = [f"model.layers.{layer}.mlp.down_proj" for layer in range(config.num_hidden_layers)]
    every = int(1 / share)
    ranked = [(site, index) for site in sites for index in range(0, width, every)]
    neurons = Neurons.from_ranked({"safety": ranked}, widths=dict.fromkeys(sites, width))
    tuned = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    state = {}
    for site in sites:
        held = neurons.indices["safety"][site]
        state |= {
            f"base_model.model.{site}.neurontune_delta": torch.full((held.numel(),), 0.5),
            f"base_model.model.{site}.neurontune_index": held.int(),
            f"base_model.model.{site}.neurontune_rank": neurons.ranks["safety"][site].int(),
        }
    directory.mkdir()
    tuned.peft_config["default"].save_pretrained(str(directory))
    save_file(state, directory / "adapter_model.safetensors")
    return len(ranked)


def measured(adapter: Path, out: Path, to: str, model: Path) -> dict[str, float]:
    """Export in a process of its own; kB before and at the peak, and seconds."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", CHILD, str(adapter), str(out), to, str(model)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def copy_seconds(base: Path, target: Path) -> float:
    """What the disk alone takes: reading every shard twice and writing it once, as a merge does."""
    start = time.perf_counter()
    for path in base.glob("*.safetensors"):
        for output in (target, Path(os.devnull)):
            with path.open("rb") as source, output.open("wb") as sink:
                while chunk := source.read(2**24):
                    sink.write(chunk)
    target.unlink()
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--share", type=float, default=0.03, help="share of the neurons that are scaled")
    options.add_argument("--layers", type=int, help="number of layers, for a smaller disk")
    given = set_up(options)
    print_header("Exports: `python benchmarks/export.py`")
    shape = QUICK if given.quick else SEVEN_B
    if given.layers:
        shape = shape | {"num_hidden_layers": given.layers}
    config = LlamaConfig(**shape, tie_word_embeddings=False, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder, "base"), Path(folder, "adapter")
        size = write_base(base, config, per_shard=4)
        count = write_adapter(adapter, config, share=given.share)
        print(f"Base model: {size / 1e9:.2f} GB in bfloat16; {count} neurons scaled.\n")
        rows = []
        for to in ("merged", "lora", "ia3"):
            found = measured(adapter, Path(folder, to), to, base)
            bytes_written = sum(path.stat().st_size for path in Path(folder, to).iterdir())
            rows.append(
                [
                    to,
                    f"{found['peak'] / 1e6:.2f} GB",
                    f"{(found['peak'] - found['ready']) / 1e6:.2f} GB",
                    f"{found['seconds']:.1f} s",
                    f"{bytes_written / 1e6:.1f} MB",
                ]
            )
        print_table(["export", "peak memory", "above the imports", "time", "files"], rows)
        print(
            f"Copying the base model's bytes as often as a merge does: {copy_seconds(base, Path(folder, 'x')):.1f} s"
        )


if __name__ == "__main__":
    main()
