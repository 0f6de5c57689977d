"""Tiny random causal LMs of many architectures, the same on every call."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 64
LAYERS = 2

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_BY_TYPE = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2"), _LLAMA_LIKE),
    "smollm3": _LLAMA_LIKE | {"no_rope_layers": [1, 0]},
    "phi": _LLAMA_LIKE | {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
    "gpt_neox": {k: v for k, v in _LLAMA_LIKE.items() if k not in ("num_key_value_heads", "head_dim")},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    },
    "bloom": {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "ffn_hidden_size": 48},
}

ARCHITECTURES = tuple(_BY_TYPE)


def tiny_model(
    model_type: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object
) -> PreTrainedModel:
    """A random model in evaluation mode with `LAYERS` layers and `VOCABULARY` tokens; `settings` are its config's."""
    config = AutoConfig.for_model(model_type, **_COMMON | _BY_TYPE[model_type] | settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def tokens(batch: int = 2, length: int = 7, *, seed: int = 0) -> torch.Tensor:
    """Random token ids without special tokens, shape `(batch, length)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
