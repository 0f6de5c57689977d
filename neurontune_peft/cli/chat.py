"""`neurontune chat`: base and tuned answers side by side, in the terminal or on a local page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neurontune_peft.cli.common import ModelOptions

if TYPE_CHECKING:
    from neurontune_peft.playground import Playground


LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Chat(ModelOptions):
    """
    Try an adapter by hand: its dials, its trigger, and attacks on it. Lines can also be piped in.

    Example: neurontune chat user/chat-model --adapter user/adapter

    Args:
        adapter: Directory or Hub name of the adapter.
        prompts: Directory of a prompt set, whose attack templates can be tried; the shipped one by default.
        strength: Where the dial stands at the start.
        max_new_tokens: Most tokens of an answer.
        web: Open a local page, which needs the `web` extra.
        host: Address that the page listens at.
        port: Port of the page; the first free one from 7860 on by default.
    """

    adapter: str = field(kw_only=True)
    prompts: str | None = None
    strength: float = 1.0
    max_new_tokens: int = 128
    web: bool = False
    host: str = "127.0.0.1"
    port: int | None = None

    def run(self) -> None:
        """
        Load, then answer until the end.

        Raises:
            ValueError: When lines that came from a file or a pipe held commands that were refused.
        """
        from peft import PeftModel
        from transformers.utils import logging

        from neurontune_peft.playground import Playground
        from neurontune_peft.playground.terminal import HELP, Terminal
        from neurontune_peft.prompts import PromptSet

        prompts = PromptSet.load(self.prompts)
        model, tokenizer = self.load()
        tuned = PeftModel.from_pretrained(model, self.adapter)
        tuned.check_tokenizer(tokenizer, chat_template=self.chat_template)
        logging.disable_progress_bar()  # one request is no long loop
        options = {"max_new_tokens": self.max_new_tokens, "chat_template": self.chat_template}
        playground = Playground(tuned, tokenizer, prompts, **options)  # type: ignore[arg-type]
        playground.set_strength(self.strength)
        if self.web:
            self._serve(playground)
            return
        terminal = Terminal(playground, out=sys.stdout, err=sys.stderr)
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"{HELP}\n{terminal.setting}", file=sys.stderr)
        terminal.run(_typed() if interactive else sys.stdin)
        if terminal.refused and not interactive:
            raise ValueError(f"got {terminal.refused} commands that were refused; expected none; see the lines above")

    def _serve(self, playground: Playground) -> None:
        from neurontune_peft.playground.web import launch

        if self.host not in LOCAL:
            print(
                f"neurontune: warning: the page listens at {self.host}, where others can reach it and nothing asks "
                "for a password; leave out --host to keep it on this machine",
                file=sys.stderr,
            )
        page = launch(playground, host=self.host, port=self.port, block=False)
        print(f"{page.local_url} (Ctrl+C ends it)", flush=True)
        page.block_thread()


def _typed() -> Iterator[str]:
    """Lines from a person; Ctrl+D ends."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
