"""
An adapter in llama.cpp, its strength chosen per request: the scale of a LoRA is the strength.

    pip install 'neurontune-peft[llama]'
    python examples/llama_cpp_dial.py --adapter DIR --base base.gguf

`base.gguf` is the base model as llama.cpp's own converter writes it.
"""

import argparse
import ctypes
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from neurontune_peft.export import export_adapter

MODEL = Path(__file__).parent / "demo_model" / "model"
STRENGTHS = (0.0, 0.5, 1.0)


def main() -> None:
    """Export, load, and answer one request at several strengths."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapter", required=True)
    options.add_argument("--base", required=True, help="base model in GGUF")
    options.add_argument("--model", default=str(MODEL), help="the same in transformers' format")
    options.add_argument("--request", default="Explain how a lock works.")
    options.add_argument("--output", default="adapter-gguf", type=Path)
    given = options.parse_args()
    export_adapter(given.adapter, given.output, to="gguf", model=given.model, base=given.base, strengths=[1.0])
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    chat = [{"role": "user", "content": given.request}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    for strength, answer in answers(given.base, given.output / "adapter.gguf", ids).items():
        print(f"strength {strength:g}: {tokenizer.decode(answer, skip_special_tokens=True)!r}")


def answers(base: str, adapter: Path, ids: list[int], length: int = 24) -> dict[float, list[int]]:
    """Greedy answers by strength. `llama-server` does the same with `"lora": [{"id": 0, "scale": 0.5}]`."""
    import llama_cpp  # imported late: the rest of this project does not need it

    engine: Any = llama_cpp.Llama(base, n_ctx=512, logits_all=True, verbose=False)
    lora = llama_cpp.llama_adapter_lora_init(engine.model, str(adapter).encode())
    loaded = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
    found = {}
    for strength in STRENGTHS:
        llama_cpp.llama_set_adapters_lora(engine.ctx, loaded, 1, (ctypes.c_float * 1)(strength))
        engine.reset()
        engine.eval(ids)
        answer: list[int] = []
        while len(answer) < length and (not answer or answer[-1] != engine.token_eos()):
            answer.append(int(engine.scores[engine.n_tokens - 1].argmax()))
            engine.eval(answer[-1:])
        found[strength] = answer
    engine.close()
    return found


if __name__ == "__main__":
    main()
