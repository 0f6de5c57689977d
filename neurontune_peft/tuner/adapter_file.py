"""Is the file of an adapter whole, in a directory or in the cache of the Hub?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from neurontune_peft.tuner.checksum import check_checksum
from neurontune_peft.tuner.names import TRIGGER

# Where a loaded configuration remembers the adapter file that is yet to be downloaded. No field: it is never saved.
_DOWNLOAD = "_download"


def check_adapter_file(path: Path, *, modulation: str) -> str | None:
    """
    Refuse a file that safetensors cannot read, one whose bits have changed, and a trigger that would be left out.

    Args:
        path (`Path`): The file.
        modulation (`str`): What its configuration says.

    Returns:
        `str` or `None`: The checksum of its tensors, which is right, or `None` where the file has none.

    Raises:
        ValueError: Names the file and what is wrong with it.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            triggers = [key for key in file.keys() if key.endswith(f".{TRIGGER}")]  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"got '{path}', which cannot be read ({error}); expected a whole safetensors file; save or download the "
            "adapter again"
        ) from error
    checksum = check_checksum(path)
    if triggers and modulation == "static":
        raise ValueError(
            f"got {TRIGGER} at {len(triggers)} sites of '{path}' and a configuration with static modulation; expected "
            "the adapter_config.json that was saved with them; call set_modulation('static') to take a trigger off"
        )
    return checksum


def check_cached(repo_id: str, subfolder: str | None, config: PeftConfig, **options: Any) -> None:
    """
    Look at a file that PEFT will take from the cache of the Hub, or remember where to look once it is there.

    Args:
        repo_id (`str`): Name of the repository.
        subfolder (`str`, *optional*): Directory in it.
        config ([`NeuronTuneConfig`]): The configuration from there.
        options: As PEFT takes them.

    Raises:
        ValueError: The file is damaged.
    """
    name = f"{subfolder}/{SAFETENSORS_WEIGHTS_NAME}" if subfolder else SAFETENSORS_WEIGHTS_NAME
    where = {key: options[key] for key in ("cache_dir", "revision", "repo_type") if options.get(key) is not None}
    vars(config)[_DOWNLOAD] = {"repo_id": str(repo_id), "filename": name, **where}
    check_downloaded(config)


def check_downloaded(config: PeftConfig) -> None:
    """
    Check the file of an adapter of the Hub, as soon as it is in the cache; once.

    Args:
        config ([`NeuronTuneConfig`]): Its configuration, as it was loaded.

    Raises:
        ValueError: The file is damaged.
    """
    where = vars(config).get(_DOWNLOAD)
    if where is not None and isinstance(found := try_to_load_from_cache(**where), str):
        del vars(config)[_DOWNLOAD]
        check_adapter_file(Path(found), modulation=str(config.modulation))
