"""What PEFT's `save_pretrained` leaves to be done: who may read the file, and what the card says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import peft
from huggingface_hub import ModelCard
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from neurontune_peft.checks import write_atomically
from neurontune_peft.tuner.checksum import add_checksum

CARD = "README.md"
_START = "## How to Get Started with the Model"
_MISSING = "[More Information Needed]"


def finish_saved(directory: Path) -> None:
    """
    Finish what PEFT has written to a directory; the configuration comes last, so its method calls this.

    - safetensors makes files that their owner alone may read; they get the mode that any new file gets, that of the
      configuration beside them;
    - nothing would tell that bits of the tensors have changed since; they get a checksum, where they have none;
    - PEFT's card does not say that the package must be imported, and names a base model by its local path.

    Args:
        directory (`Path`): Where the configuration has just been written.
    """
    weights = directory / SAFETENSORS_WEIGHTS_NAME
    if weights.is_file() and not weights.is_symlink():
        add_checksum(weights)
        os.chmod(weights, stat.S_IMODE((directory / CONFIG_NAME).stat().st_mode))
    for card in (directory / CARD, directory.parent / CARD):  # adapters with a name have a folder of their own
        if card.is_file() and f"- PEFT {peft.__version__}" in card.read_text(encoding="utf-8"):
            complete_card(card)
            return


def complete_card(path: Path) -> None:
    """
    Put the import into a card that PEFT wrote, and take local paths out of it.

    Args:
        path (`Path`): The card.
    """
    card = ModelCard.load(path, ignore_metadata_errors=True)
    base = card.data.get("base_model")
    local = isinstance(base, str) and is_local_name(base)
    lacking = "import neurontune_peft" not in card.text
    if local:
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags or [] if not tag.endswith(base)] or None
    if lacking:
        code = snippet("path/to/this/adapter", "the/base-model" if local or not isinstance(base, str) else base)
        before, heading, after = card.text.partition(_START)
        after = after.replace(_MISSING, code, 1) if _MISSING in after.partition("\n## ")[0] else f"\n\n{code}\n{after}"
        card.text = f"{before.rstrip()}\n\n{heading or _START}{after}"
    if local or lacking:
        write_atomically(path, str(card))


def snippet(adapter: str, base_model: str) -> str:
    """Python code that loads an adapter, as Markdown."""
    return f"""```python
import neurontune_peft  # registers NEURONTUNE with PEFT: pip install neurontune-peft
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base_model}")
model = AutoModelForCausalLM.from_pretrained("{base_model}")
model = PeftModel.from_pretrained(model, "{adapter}")
# model.set_strength(0.5) turns the dial; 0 is the base model bit for bit
```"""


def is_local_name(name: str) -> bool:
    """Whether the name of a model is a path on this machine, rather than one on the Hub."""
    return name.startswith(("/", "~", ".", "\\")) or "\\" in name or ":" in name or Path(name).is_dir()


def relative_base(name: str | None) -> str | None:
    """
    The name of a base model as commands write it: a local directory as seen from the working directory.

    Absolute paths tell of a machine and its user, and nobody else has them. The `./` in front keeps a directory from
    being taken for a name on the Hub.

    Args:
        name (`str`, *optional*): A path, or a name on the Hub, which is returned as it is.

    Returns:
        `str`, *optional*: For example `"./models/chat"`; `"~/models/chat"` where the way there would enter the user's
            own directory from outside, and the last part alone where there is no way, as between drives.
    """
    if name is None or not (os.path.isabs(name) or Path(name).is_dir()):
        return name
    target, here, home = Path(os.path.abspath(name)), Path.cwd(), Path.home()
    if target.is_relative_to(home) and not here.is_relative_to(home):
        return f"~/{target.relative_to(home).as_posix()}"
    try:
        path = Path(os.path.relpath(target, here)).as_posix()
    except ValueError:  # on another drive
        return target.name
    return path if path.startswith("..") or path == "." else f"./{path}"
