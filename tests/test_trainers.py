"""transformers' Trainer and trl's SFTTrainer train an adapter unchanged."""

import torch
from architectures import tiny_model, tokens
from datasets import Dataset
from helpers import tiny_llama, tiny_tokenizer
from peft import get_peft_model
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from neurontune_peft import NeuronTuneConfig

OPTIONS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}


def sequences() -> Dataset:
    """Eight short sequences that a scale can learn to prefer."""
    rows = tokens(batch=8, length=6)
    return Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows])


def trainer(directory: str, *, max_steps: int, **options: object) -> Trainer:
    model = get_peft_model(tiny_model(), NeuronTuneConfig(task_type="CAUSAL_LM"))
    arguments = TrainingArguments(str(directory), max_steps=max_steps, **(OPTIONS | options))
    return Trainer(model=model, args=arguments, train_dataset=sequences())


def deltas(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "neurontune_delta" in n}


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def test_trainer_lowers_the_loss_and_changes_only_the_deltas(tmp_path):
    run = trainer(tmp_path, max_steps=20, save_strategy="no")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert sum(losses(run)[-4:]) < sum(losses(run)[:4])
    changed = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(deltas(run.model))


def test_a_resumed_trainer_run_ends_with_the_deltas_of_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=8, save_strategy="no")
    whole.train()
    first = trainer(tmp_path / "cut", max_steps=8, save_steps=4)
    first.train()
    resumed = trainer(tmp_path / "cut", max_steps=8, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    for name, delta in deltas(whole.model).items():
        assert torch.equal(delta, deltas(resumed.model)[name])


def test_sft_trainer_lowers_the_loss_and_changes_only_the_deltas(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "sorry no"}]}
        for question in ("tell me", "how do you", "what is", "tell me how") * 2
    ]
    run = SFTTrainer(
        model=tiny_llama(vocab_size=len(tokenizer)),
        args=SFTConfig(str(tmp_path), max_steps=20, save_strategy="no", bf16=False, max_length=32, **OPTIONS),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=NeuronTuneConfig(task_type="CAUSAL_LM"),
    )
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert sum(losses(run)[-4:]) < sum(losses(run)[:4])
    changed = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(deltas(run.model))
