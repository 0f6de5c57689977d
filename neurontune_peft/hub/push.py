"""Publishing an adapter: its two files and a card, in one commit of huggingface_hub's own client."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from neurontune_peft.hub.card import PICTURE, model_card
from neurontune_peft.hub.client import Client, commit, make_repository
from neurontune_peft.hub.evidence import Evidence
from neurontune_peft.hub.picture import frontier_picture
from neurontune_peft.hub.private import check_publishable, published_base, shared_command
from neurontune_peft.tuner.config import config_text
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.remote import explained, patiently
from neurontune_peft.tuner.saved import CARD


def published_files(
    directory: str | os.PathLike[str], repo_id: str, *, license: str | None = None, base_model: str | None = None
) -> dict[str, bytes]:
    """
    What will be published of an adapter's directory: its configuration, its tensors, a card, a picture; nothing else.

    Args:
        directory (`str` or `os.PathLike`): The adapter.
        repo_id (`str`): Name on the Hub, `user/name`.
        license (`str`, *optional*): The Hub's identifier of the licence, such as `"apache-2.0"`.
        base_model (`str`, *optional*): The base model's name on the Hub, in place of what the configuration says.

    Returns:
        `dict[str, bytes]`: Name to content.

    Raises:
        ValueError: When the directory holds no whole adapter, or something private would be published.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"got '{directory}', which is no directory; expected a saved adapter; correct the path")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", license):
        raise ValueError(f"got license {license[:80]!r}; expected the Hub's name of one; write for example apache-2.0")
    file = AdapterFile.load(directory)
    base = published_base(file.config.base_model_name_or_path, base_model)
    evidence = Evidence.of(directory, file.config)
    if evidence.command:
        evidence = replace(evidence, command=shared_command(evidence.command, base_model=base))
    changes: dict[str, Any] = {"base_model_name_or_path": base, "revision": None}
    if evidence.presets:
        changes["provenance"] = {**(file.config.provenance or {}), "presets": evidence.presets}
    file = replace(file, config=replace(file.config, **changes))
    picture = frontier_picture(directory, PICTURE, evidence.frontier)
    card = model_card(file, repo_id, evidence, license=license, picture=picture is not None)
    config = file.config.to_dict() | {"inference_mode": True}
    texts = {
        CARD: str(card).encode(),
        CONFIG_NAME: config_text(config).encode(),
    }
    check_publishable(texts)
    tensors = (directory / SAFETENSORS_WEIGHTS_NAME).read_bytes()
    return texts | {SAFETENSORS_WEIGHTS_NAME: tensors} | ({} if picture is None else {PICTURE: picture})


def push(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload NeuronTune adapter",
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """
    Publish an adapter with a card, in one commit: all of it appears, or nothing.

    The token comes from where huggingface_hub looks for it (`HF_TOKEN`, `hf auth login`). The repository is made when
    it does not exist; if the upload then fails, it stays there, empty.

    Args:
        directory (`str` or `os.PathLike`): The adapter, as `save_pretrained` or `neurontune tune` wrote it.
        repo_id (`str`): Name on the Hub, `user/name`.
        private (`bool`, *optional*, defaults to `False`): Make a private repository.
        revision (`str`, *optional*): Branch; made when it does not exist.
        commit_message (`str`, *optional*): Title of the commit.
        license (`str`, *optional*): The Hub's identifier of the licence.
        base_model (`str`, *optional*): The base model's name on the Hub.

    Returns:
        `str`: Address of the commit.

    Raises:
        ValueError: Before anything is sent, when something is wrong with the adapter; afterwards, why the Hub refused.
    """
    _check_name(repo_id)
    files = published_files(directory, repo_id, license=license, base_model=base_model)
    api = Client(library_name="neurontune_peft")
    try:
        make_repository(api, repo_id, private=private)
        if revision is not None:
            patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        return commit(api, repo_id, _operations(files), message=commit_message, revision=revision)
    except ValueError:
        raise
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise ValueError(
            f"{explained(error, repo_id)}. The files go up in one commit: the repository holds all of this version or "
            "nothing of it"
        ) from error


def _operations(files: Mapping[str, bytes]) -> list[CommitOperationAdd]:
    # Buffers go up by plain HTTP, which every server of the Hub's protocol speaks; Xet storage, which paths and bytes
    # would take, saves nothing for files of kilobytes.
    return [CommitOperationAdd(path_in_repo=n, path_or_fileobj=io.BytesIO(content)) for n, content in files.items()]


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        named = repo_id.count("/") == 1
    except ValueError:
        named = False
    if not named:
        raise ValueError(f"got '{repo_id[:200]}'; expected a name on the Hub, USER/NAME; correct it")
