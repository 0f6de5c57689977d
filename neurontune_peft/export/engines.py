"""What serving engines ask of a LoRA, checked against their published source, and the commands that load it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

# vllm/config/lora.py, `MaxLoRARanks`; a smaller adapter is padded to the rank that the flag names.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# python/sglang/srt/lora/utils.py, the MLP outputs among `_KNOWN_LORA_TARGET_MODULES`.
SGLANG_MODULES = frozenset({"down_proj", "out_proj", "o_proj"})


def vllm_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` that vLLM accepts for an adapter of this rank; `None` above 512."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def lora_notes(rank: int, modules: Collection[str], names: Sequence[str], *, renamed: bool) -> list[str]:
    """
    Say how engines load an exported LoRA, and which will not.

    Args:
        rank (`int`): Its rank.
        modules (`Collection[str]`): Last parts of the names of its modules.
        names (`Sequence[str]`): Names of the adapter directories, one per strength.
        renamed (`bool`): The checkpoint names the modules in another way than transformers.

    Returns:
        `list[str]`: Lines for people.
    """
    allowed, lines = vllm_rank(rank), []
    adapters = " ".join(f"{name}=OUT/{name}" if len(names) > 1 else "safe=OUT" for name in names)
    if allowed is None:
        lines.append(
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this LoRA has rank {rank}: export fewer neurons with "
            "--counts, or use --to merged"
        )
    else:
        lines.append(f"vLLM: vllm serve MODEL --enable-lora --max-lora-rank {allowed} --lora-modules {adapters}")
    targets = " ".join(sorted(modules))
    if set(modules) <= SGLANG_MODULES:
        lines.append(
            f"SGLang: python -m sglang.launch_server --model-path MODEL --enable-lora --max-lora-rank {rank} "
            f"--lora-target-modules {targets} --lora-paths {adapters}"
        )
    else:
        lines.append(f"SGLang knows no LoRA for {targets}: use --to merged there")
    if renamed:
        lines.append(
            "This checkpoint names modules in another way than transformers does; engines with names of their own may "
            "not find them: use --to merged there"
        )
    return lines
