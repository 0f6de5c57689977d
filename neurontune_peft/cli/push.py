"""`neurontune push`: publish an adapter on the Hub, with a card that says what it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Push:
    """
    Publish an adapter with a model card and its evaluation, in one commit.

    Published are adapter_config.json, adapter_model.safetensors, the card, and frontier.png where there is one;
    reports with answers, logs and other files stay here. Log in before with 'hf auth login', or set HF_TOKEN.

    Example: neurontune push adapter user/name --license apache-2.0 --private

    Args:
        adapter: Directory of the adapter.
        repository: Name on the Hub, USER/NAME; made when it does not exist.
        private: Make a private repository.
        revision: Branch; made when it does not exist.
        commit_message: Title of the commit.
        license: The Hub's name of the licence, such as apache-2.0.
        base_model: The base model's name on the Hub, where the adapter was made from a local directory.
        dry_run: Print the card and what would be published; nothing is sent.
    """

    adapter: Annotated[Path, tyro.conf.Positional]
    repository: Annotated[str, tyro.conf.Positional]
    private: bool = False
    revision: str | None = None
    commit_message: str = "Upload NeuronTune adapter"
    license: str | None = None
    base_model: str | None = None
    dry_run: bool = False

    def run(self) -> None:
        """Check, write the card, publish."""
        from neurontune_peft.hub.push import published_files, push
        from neurontune_peft.tuner.saved import CARD

        if self.dry_run:
            files = published_files(self.adapter, self.repository, license=self.license, base_model=self.base_model)
            print(files[CARD].decode())
            print("\n".join(f"{name}: {len(content):,} bytes" for name, content in files.items()))
            return
        url = push(
            self.adapter,
            self.repository,
            private=self.private,
            revision=self.revision,
            commit_message=self.commit_message,
            license=self.license,
            base_model=self.base_model,
        )
        print(f"Published: {url}")
