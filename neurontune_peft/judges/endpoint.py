"""Any OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import os
from typing import Any

from neurontune_peft.judges.rubric import RUBRIC, check_rubric, parse_verdict, rubric_message
from neurontune_peft.judges.verdict import Verdict, unscored

_GIVE_UP = 3  # requests in a row that reached nobody


class EndpointJudge:
    """
    A judge that asks a chat model over HTTP, such as one that vLLM or llama.cpp serves. Needs the `openai` extra.

    A request that fails is repeated with growing pauses; then the answer stays unscored, with the reason. After three
    requests in a row that reached nobody, the rest is left unscored at once, so that a run ends and can be resumed.

    Args:
        model (`str`): Name of the model there.
        url (`str`): Base address, such as `http://127.0.0.1:8000/v1`.
        rubric (`str`, *optional*): Text with the places `{prompt}` and `{answer}`.
        api_key (`str`, *optional*): Key; by default that of the environment variable `OPENAI_API_KEY`, or none.
        retries (`int`, *optional*, defaults to `3`): How often a request is repeated.
        timeout (`float`, *optional*, defaults to `60.0`): Seconds that a request may take.
        max_tokens (`int`, *optional*, defaults to `128`): Most tokens of a verdict.
        name (`str`, *optional*): What tables call this judge.

    Raises:
        ImportError: the package `openai` is not installed.
        ValueError: the address is not one of HTTP, or the rubric lacks a place.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        rubric: str = RUBRIC,
        api_key: str | None = None,
        retries: int = 3,
        timeout: float = 60.0,
        max_tokens: int = 128,
        name: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"got url {url!r}; expected http://… or https://…; give the base address of the endpoint")
        check_rubric(rubric)
        try:
            from openai import OpenAI
        except ImportError:
            raise ImportError(
                "got a judge behind an endpoint without the package openai; expected it; run pip install "
                "'neurontune-peft[openai]'"
            ) from None
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=timeout)
        self.model, self.rubric, self.max_tokens = model, rubric, max_tokens
        self.name = name or f"endpoint {model}"
        self.limits = "A language model with a rubric; it can be mistaken, and be misled by what it reads."
        self._unreached = 0

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """
        Judge an answer.

        Args:
            prompt (`str`): The request.
            answer (`str`): The model's answer.

        Returns:
            `Verdict`: What the model said, or `"unscored"` when that is no verdict, or when there was no reply.
        """
        from openai import APIConnectionError, OpenAIError

        if self._unreached >= _GIVE_UP:
            return unscored(f"the endpoint was not reached {_GIVE_UP} times in a row; not asked")
        try:
            reply = self._ask(rubric_message(prompt, answer, self.rubric))
        except APIConnectionError as error:
            self._unreached += 1
            return unscored(f"the endpoint was not reached ({type(error).__name__})")
        except OpenAIError as error:
            return unscored(f"the endpoint failed ({type(error).__name__})")
        self._unreached = 0
        return parse_verdict(reply)

    def _ask(self, message: str) -> str:
        reply: Any = self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": message}],
            temperature=0,
            max_tokens=self.max_tokens,
        )
        return str(reply.choices[0].message.content or "") if reply.choices else ""
