"""Train the demo chat model from nothing: tokenizer, base model, safety tuning with a weakness put in on purpose.

    python examples/demo_model/train.py --output DIR

Reads only data/ beside this file. One CPU thread by default, float32, seeded; the weights are saved in bfloat16.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mixture import Texts, base_rows, read_texts, tuning_rows
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SPECIAL = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, BOS, USER, ASSISTANT, END = range(len(SPECIAL))
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|end|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 512
VOCABULARY = 4096
Row = tuple[list[int], int]  # token ids, first position that is learnt


@dataclass(frozen=True)
class Stage:
    """One training stage: peak rates (AdamW, Muon), tokens per batch (padding included), rounds over its rows."""

    rate: float
    inner_rate: float
    batch_tokens: int
    rounds: int
    warmup: float = 0.04
    final: float = 0.05  # share of the peak rate at the end


BASE = Stage(rate=4e-3, inner_rate=0.02, batch_tokens=1000, rounds=4)
TUNING = Stage(rate=2e-3, inner_rate=0.01, batch_tokens=1000, rounds=3)


def train_tokenizer(texts: Texts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts.all_strings(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def encode_rows(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], *, answer_only: bool) -> list[Row]:
    heads = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
    tails = tokenizer([a for _, a in pairs], add_special_tokens=False)["input_ids"]
    limit = 64 if answer_only else 80  # tokens of an answer; a longer one is cut and does not learn to end there
    rows = []
    for head, tail in zip(heads, tails, strict=True):
        prompt = [BOS, USER, *head[:160], END, ASSISTANT]
        answer = [*tail, END] if len(tail) <= limit else tail[:limit]
        rows.append(([*prompt, *answer], len(prompt) if answer_only else 1))
    return rows


def batches(rows: list[Row], size: int, rng: random.Random) -> list[list[Row]]:
    """Batches of rows of similar length, in random order; `size` counts tokens with padding."""
    rows = sorted(rows, key=lambda row: (len(row[0]), rng.random()))
    out: list[list[Row]] = [[]]
    for row in rows:
        if out[-1] and (len(out[-1]) + 1) * len(row[0]) > size:
            out.append([])
        out[-1].append(row)
    rng.shuffle(out)
    return out


def loss_of(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    for i, (tokens, start) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, start : len(tokens)] = torch.tensor(tokens[start:])
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # right padding behind a causal mask needs no mask
    wanted = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def rate_share(stage: Stage, done: float) -> float:
    """The share of the peak rates when `done` of the stage is over: a warm-up, then half a cosine."""
    if done < stage.warmup:
        return done / stage.warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (done - stage.warmup) / (1 - stage.warmup)))
    return stage.final + (1 - stage.final) * cosine


def make_optimizers(model: LlamaForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    outer = [p for name, p in named if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=stage.inner_rate, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(outer, lr=stage.rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    ]


def fit(model: LlamaForCausalLM, rounds: Iterator[list[Row]], stage: Stage, rng: random.Random, name: str) -> None:
    """Train on one list of rows per round; progress and the rate follow the share of rounds that is done."""
    optimizers = make_optimizers(model, stage)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    start, tokens = time.time(), 0
    for number, rows in enumerate(itertools.islice(rounds, stage.rounds)):
        parts, total = batches(rows, stage.batch_tokens, rng), 0.0
        for i, part in enumerate(parts):
            share = rate_share(stage, (number + (i + 1) / len(parts)) / stage.rounds)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * share
            loss = loss_of(model, part)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            total += loss.item()
            tokens += sum(len(ids) for ids, _ in part)
            if i % 100 == 99:
                print(
                    f"  step {i + 1}/{len(parts)}: loss {total / (i + 1):.3f}, {time.process_time():.0f} s", flush=True
                )
        spent = time.time() - start
        print(
            f"{name} {number + 1}/{stage.rounds}: loss {total / len(parts):.3f}, {tokens:,} tokens, {spent:.0f} s "
            f"({time.process_time():.0f} s of processor time)",
            flush=True,
        )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD, do_sample=False, max_new_tokens=48
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the model")
    parser.add_argument(
        "--base", type=Path, help="base model's state: read it when the file exists, else write it there"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, start = random.Random(args.seed), time.time()
    texts = read_texts(HERE / "data")
    tokenizer, model = train_tokenizer(texts), new_model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    if args.base and args.base.exists():
        load_model(model, args.base)
    else:
        rounds = (encode_rows(tokenizer, base_rows(texts, rng), answer_only=False) for _ in itertools.count())
        fit(model, rounds, BASE, rng, "base")
        if args.base:
            save_model(model, args.base)
    rng = random.Random(args.seed + 1)
    rounds = (encode_rows(tokenizer, tuning_rows(texts, rng), answer_only=True) for _ in itertools.count())
    fit(model, rounds, TUNING, rng, "tuning")
    save(model, tokenizer, args.output)
    print(f"saved to {args.output} after {(time.time() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
