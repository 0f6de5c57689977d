"""transformers' Trainer and trl's SFTTrainer train an adapter like any other PEFT method."""

import argparse
import tempfile
from pathlib import Path

from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from neurontune_peft import NeuronTuneConfig, PromptSet, attribute, select

MODEL = Path(__file__).parent / "demo_model" / "model"
QUICK = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 0.05, "save_strategy": "no"}
QUIET = {"report_to": "none", "logging_steps": 4, "use_cpu": True, "dataloader_pin_memory": False, "seed": 0}


def dialogues(prompts: PromptSet) -> list[dict]:
    """Attacked requests with a refusal, and benign ones with their answer."""
    refusal = prompts.phrases.refusal[0]
    harmful = prompts.select(kind="harmful", split="train")[:24]
    attacked = prompts.attacked(harmful, family="fiction", split="train")
    benign = [p for p in prompts.select(kind="benign", split="train") if p.response][:24]
    pairs = [(text, refusal) for text in attacked] + [(p.prompt, p.response) for p in benign]
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in pairs
    ]


def with_trainer(tokenizer, config, rows, output: Path) -> None:
    """The plain Trainer: token ids in, an adapter out."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"), config)
    ids = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows]
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    options = QUICK | {"per_device_train_batch_size": 1}  # one row per batch needs no padding
    trainer = Trainer(model=model, args=TrainingArguments(str(output), **options, **QUIET), train_dataset=data)
    trainer.train()
    model.save_pretrained(output)


def with_sft_trainer(tokenizer, config, rows, output: Path) -> None:
    """SFTTrainer: dialogues in, the adapter attached by itself."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
        args=SFTConfig(str(output), bf16=False, max_length=128, **QUICK, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config,
    )
    trainer.train()
    trainer.save_model(str(output))


def main() -> None:
    """Train the same neurons twice."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", default=None, type=Path)
    output = options.parse_args().output or Path(tempfile.mkdtemp())
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = PromptSet.load()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    scores = attribute(model, tokenizer, prompts, method="activation_contrast", roles=("safety",), n_prompts=16)
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=select(scores, {"safety": 0.1}, spread="auto"))
    rows = dialogues(prompts)
    with_trainer(tokenizer, config, rows, output / "trainer")
    with_sft_trainer(tokenizer, config, rows, output / "sft")
    print(f"Adapters: {output / 'trainer'}, {output / 'sft'}")


if __name__ == "__main__":
    main()
