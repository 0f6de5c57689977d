"""Small random models and adapters under the Hub names that PEFT's tests ask for, in a Hub cache of their own.

The cache has the layout of `huggingface_hub`, so that nothing has to be patched: with `HF_HUB_OFFLINE=1` and `HF_HOME`
pointing here, every `from_pretrained` finds its files. Adapters exist once per method; a reference file says which of
the two is current.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from neurontune_peft import NeuronTuneConfig

METHODS = ("IA3", "NEURONTUNE")
# A snapshot's name is a commit in a real cache: 40 hexadecimal digits.
SNAPSHOTS = {"": "0" * 40, "IA3": "1" * 40, "NEURONTUNE": "2" * 40}

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 512}
GATED = TINY | {"intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 128}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 512, "n_positions": 128}
BERT = TINY | {"intermediate_size": 32, "max_position_embeddings": 128}
OPT = TINY | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 128}
BART = {"d_model": 16, "vocab_size": 512, "max_position_embeddings": 128} | {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 32))
}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 512}
WHISPER = BART | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
WHISPER |= {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}
GEMMA = GATED | {"head_dim": 4, "sliding_window": 16, "layer_types": ["full_attention"] * 3}

# Hub name -> (model class, prefix of its configuration class, options).
MODELS: dict[str, tuple[str, str, dict]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPT", OPT),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", "OPT", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2", GPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2", GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2", GPT),
    "gpt2": ("GPT2LMHeadModel", "GPT2", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJ", GPT | {"rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "Llama", GATED),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "Llama", GATED),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", "Mistral", GATED),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2", GATED),
    "Qwen/Qwen2-0.5B": ("Qwen2ForCausalLM", "Qwen2", GATED),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", "Qwen3", GATED | {"head_dim": 4}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", "Gemma3Text", GEMMA),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("BloomForCausalLM", "Bloom", TINY),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", "GPTNeoX", BERT),
    "bert-base-uncased": ("BertForSequenceClassification", "Bert", BERT),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", "Bert", BERT),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        "Roberta",
        BERT,
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", "Bart", BART),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("T5ForConditionalGeneration", "T5", T5),
    "peft-internal-testing/tiny-random-t5": ("T5ForConditionalGeneration", "T5", T5),
    "google/flan-t5-small": ("T5ForConditionalGeneration", "T5", T5),
    "t5-base": ("T5ForConditionalGeneration", "T5", T5),
    "peft-internal-testing/tiny-clip-text-2": ("CLIPTextModel", "CLIPText", BERT),
    "stand-in/opt-sequence": ("OPTForSequenceClassification", "OPT", OPT),
    "stand-in/gpt2-token": ("GPT2ForTokenClassification", "GPT2", GPT),
    "stand-in/opt-question": ("OPTForQuestionAnswering", "OPT", OPT),
    "stand-in/opt-features": ("OPTModel", "OPT", OPT),
    "stand-in/whisper": ("WhisperForConditionalGeneration", "Whisper", WHISPER),
}

OPT_BASE, T5_BASE = "peft-internal-testing/tiny-random-OPTForCausalLM", "peft-internal-testing/tiny-random-t5"
# Hub name -> (base model, task, modules to scale; None: the method's own choice).
ADAPTERS: dict[str, tuple[str, str | None, list[str] | None]] = {
    "peft-internal-testing/tiny-OPTForCausalLM-lora": (OPT_BASE, "CAUSAL_LM", None),
    "peft-internal-testing/tiny-random-OPTForCausalLM-extended-vocab": (OPT_BASE, "CAUSAL_LM", None),
    "peft-internal-testing/tiny-opt-lora-revision": (OPT_BASE, "CAUSAL_LM", None),
    "peft-internal-testing/gpt2-lora-random": ("gpt2", "CAUSAL_LM", None),
    "ybelkada/test-st-lora": (OPT_BASE, None, None),
    "peft-internal-testing/tiny_T5ForSeq2SeqLM-lora": (T5_BASE, "SEQ_2_SEQ_LM", ["wo"]),
    "peft-internal-testing/tiny_OPTForSequenceClassification-lora": ("stand-in/opt-sequence", "SEQ_CLS", ["fc2"]),
    "peft-internal-testing/tiny_GPT2ForTokenClassification-lora": ("stand-in/gpt2-token", "TOKEN_CLS", ["mlp.c_proj"]),
    "peft-internal-testing/tiny_OPTForQuestionAnswering-lora": ("stand-in/opt-question", "QUESTION_ANS", ["fc2"]),
    "peft-internal-testing/tiny_OPTForFeatureExtraction-lora": (
        "stand-in/opt-features",
        "FEATURE_EXTRACTION",
        ["fc2"],
    ),
    "peft-internal-testing/tiny_WhisperForConditionalGeneration-lora": ("stand-in/whisper", None, ["fc2"]),
}
# Tests of configurations want an adapter of another method here.
LORA = ("peft-internal-testing/tiny-opt-lora-revision",)
WITH_TOKENIZER = "peft-internal-testing/tiny-random-OPTForCausalLM-extended-vocab"


def fill_hub_cache(cache: Path) -> None:
    """Write every model and adapter anew: what an adapter looks like depends on the code that is tested."""
    shutil.rmtree(cache, ignore_errors=True)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in MODELS:
        write_snapshot(cache, name, "", lambda folder, name=name: save_model(name, folder))
    for name in ADAPTERS:
        for method in METHODS:
            write_snapshot(cache, name, method, lambda folder, n=name, m=method: save_adapter(n, m, folder))


def write_snapshot(cache: Path, name: str, method: str, save: Callable[[Path], None]) -> None:
    """Save into the place where the Hub's cache keeps one commit of a repository, and point `main` at it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / SNAPSHOTS[method]
    folder.mkdir(parents=True, exist_ok=True)
    save(folder)
    (repository / "refs").mkdir(exist_ok=True)
    for reference in ("main", "test"):
        (repository / "refs" / reference).write_text(SNAPSHOTS[method])


def point_adapters_at(cache: Path, method: str) -> None:
    """Make the adapters of one method the current ones."""
    for name in ADAPTERS:
        for reference in ("main", "test"):
            (cache / f"models--{name.replace('/', '--')}" / "refs" / reference).write_text(SNAPSHOTS[method])


def random_model(name: str) -> PreTrainedModel:
    """The model that stands in for a Hub name; always the same numbers."""
    model_class, config_prefix, options = MODELS[name]
    config = getattr(transformers, f"{config_prefix}Config")(**options, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    return getattr(transformers, model_class)(config).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with `<pad>`, `<s>`, `</s>`."""
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def save_model(name: str, folder: Path) -> None:
    """Model and tokenizer."""
    random_model(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def save_adapter(name: str, method: str, folder: Path) -> None:
    """An adapter of one method, and the tokenizer where a test looks for it beside the adapter."""
    base, task, modules = ADAPTERS[name]
    config: PeftConfig = (
        NeuronTuneConfig(task_type=task, target_modules=modules)
        if method == "NEURONTUNE"
        else IA3Config(task_type=task, target_modules=modules, feedforward_modules=modules)
    )
    if name in LORA:
        config = LoraConfig(task_type=task)
    model = get_peft_model(random_model(base), config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)
    if name == WITH_TOKENIZER:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([f"<extra_{i}>" for i in range(512 - len(tokenizer) + 8)])
        tokenizer.save_pretrained(folder)
