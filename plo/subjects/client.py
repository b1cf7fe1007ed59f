"""Calls to a model behind a server with OpenAI's protocol: an answer, or an error that says how to react."""

import email.utils
import json
import math
import os
import re
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from plo.errors import PloError
from plo.extras import MissingExtra
from plo.subjects.endpoint import Endpoint

# Errors about one question, by code or type, or by the words of various servers for a text that is too long.
OF_THE_QUESTION = {"content_filter", "content_policy_violation", "context_length_exceeded", "exceed_context_size_error"}
TOO_LONG = re.compile(r"context[ _](length|size|window)|too long|maximum\b.*\btokens", re.IGNORECASE | re.DOTALL)
# Codes of a 429 that waiting does not help.
NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
LONGEST_WAIT = 600.0  # seconds, even if the server wants more
FEWER = 5  # likeliest tokens, if 20 are refused
ADAPTABLE = (
    "temperature", "top_p", "seed", "max_tokens", "top_logprobs", "logprobs", "stop_token_ids", "return_token_ids",
)  # fmt: skip


@dataclass(eq=False)
class CallError(PloError):
    """A call had no answer.

    Attributes:
        said: text of the reply, or the error without one.
        later: whether a repeated call may succeed.
        wait: seconds after which the server wants a repeated call; None if it does not say.
        of_the_question: whether the server refuses only this question, as too long or filtered.
        answered: whether the server may have computed an answer, and charge for it.
        status: HTTP status of the reply; None without a reply.
    """

    said: str
    later: bool = False
    wait: float | None = None
    of_the_question: bool = False
    answered: bool = False
    status: int | None = None

    def explained(self, remedy: str) -> str:
        """Return what was said instead of a completion, followed by the remedy, a clause."""
        if self.status == 200:
            return (
                f"the reply is something that is no completion, {self.said}. Check that the address is that of an "
                f"OpenAI-compatible server (most end in /v1)"
            )
        said = self.said if self.status is None else f"HTTP {self.status}: {self.said[:500]}"
        return f"{said.rstrip('. ')}. {remedy}"


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
        text: text of the completion; None if the server sent `content: null`.
        choice: the choice as the server sent it.
        usage: numbers of tokens of prompt and completion; None if the server does not report them.
        thought: whether the server sends reasoning apart from the text.
    """

    text: str | None
    choice: Mapping[str, Any]
    usage: tuple[int, int] | None
    thought: bool


class Client:
    """Client of a model behind a server. Many threads may call it.

    If the server refuses a field that not every model supports (temperature, max_tokens, logprobs, ...), the field is left
    out, renamed or lowered as the server requires, for this and all later calls.

    Raises:
        MissingExtra: the package openai is not installed.
    """

    def __init__(self, endpoint: Endpoint, timeout: float):
        try:
            import openai
        except ImportError as error:
            raise MissingExtra(f"{endpoint.model} at {endpoint.url} needs openai: pip install 'plo[evals]'.") from error

        self.endpoint, self._lock = endpoint, threading.Lock()
        self._renamed: dict[str, str] = {}
        self._lowered: dict[str, int] = {}
        self._left_out: set[str] = set()
        key = endpoint.key or "none"
        headers: dict[str, Any] = {"Authorization": f"Bearer {key}"}
        if not endpoint.is_provider:  # what openai reads from the environment is for the default provider only
            custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
            names = {"OpenAI-Organization", "OpenAI-Project", *(line.partition(":")[0].strip() for line in custom)}
            headers = dict.fromkeys(names - {""}, openai.Omit()) | headers
        # The address is always given, as openai would else read one from the environment.
        self.client = openai.OpenAI(
            api_key=key, base_url=endpoint.url, timeout=timeout, max_retries=0, default_headers=headers
        )

    def ask(
        self, prompt: str | list[int] | list[dict[str, str]], fields: Mapping[str, Any], ours: Collection[str] = ()
    ) -> Answer:
        """Return the completion of a text or of token ids, or the answer to messages.

        Args:
            fields: fields of the request.
            ours: names of the fields that may be left out or lowered, because the user did not set them.

        Raises:
            CallError: there is no answer.
        """
        import openai

        is_chat, client = not isinstance(prompt, str) and isinstance(prompt[0], dict), cast(Any, self.client)
        call = (client.chat.completions if is_chat else client.completions).with_raw_response.create
        asked = {"messages" if is_chat else "prompt": prompt}
        while True:
            sent = self._adapted(fields)
            try:
                # extra_body admits fields that openai's signature lacks.
                reply = call(model=self.endpoint.model, extra_body=sent, **asked)
            except openai.APIStatusError as error:
                fault = self._fault(error)
                of_fields = fault.status in (400, 422) and not fault.of_the_question
                if of_fields and self._adapt(fault.said, fields, sent, ours):
                    continue
                raise fault from None  # openai's error contains the reply with the key
            except openai.APIConnectionError as error:  # time-outs too, after which the server may have answered
                cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
                said = f"{type(error).__name__}: {error}{cause}"
                raise CallError(self.endpoint.redacted(said), later=True, answered=True) from None
            except openai.OpenAIError as error:
                raise CallError(self.endpoint.redacted(f"{type(error).__name__}: {error}")) from None
            text = self.endpoint.redacted(reply.content.decode("utf-8", "replace"))
            try:
                return self._read(json.loads(text))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                said = f"{text[:200]!r} is no completion"
                raise CallError(said, later=True, wait=_wait(reply.headers), answered=True, status=200) from None

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let the server load a LoRA adapter under a name, as vLLM does: POST /load_lora_adapter.

        Raises:
            CallError: the server cannot, or cannot see the folder.
        """
        import openai

        try:
            self.client.post(
                "/load_lora_adapter", body={"lora_name": name, "lora_path": str(folder)}, cast_to=cast(Any, str)
            )
        except openai.APIStatusError as error:
            raise self._fault(error) from None
        except openai.OpenAIError as error:
            raise CallError(self.endpoint.redacted(f"{type(error).__name__}: {error}")) from None

    @property
    def adaptations(self) -> list[str]:
        """Changes that the server required, such as "without temperature"."""
        with self._lock:
            return [
                *(f"with {new} instead of {old}" for old, new in self._renamed.items()),
                *(f"with {name}={value}" for name, value in self._lowered.items()),
                *(f"without {name}" for name in sorted(self._left_out)),
            ]

    def _adapted(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            kept = {name: value for name, value in fields.items() if name not in self._left_out}
            lowered = {name: self._lowered.get(name, value) for name, value in kept.items()}
            return {self._renamed.get(name, name): value for name, value in lowered.items()}

    def _adapt(self, said: str, fields: Mapping[str, Any], sent: Mapping[str, Any], ours: Collection[str]) -> bool:
        """Adapt to a refusal of a field; return whether the next call differs from the refused one."""
        named = [name for name in ADAPTABLE if name in ours and re.search(rf"\b{name}\b", said)]
        with self._lock:
            if "max_tokens" in sent and "max_completion_tokens" in said:  # only another name, whoever set it
                self._renamed["max_tokens"] = "max_completion_tokens"
            elif "top_logprobs" in named and sent.get("top_logprobs", 0) > FEWER:
                self._lowered["top_logprobs"] = FEWER
            elif named:
                gone = set(named) & set(sent)
                both = {"logprobs", "top_logprobs"}
                self._left_out |= gone | (both & set(sent) if gone & both else set())
        return self._adapted(fields) != sent

    def _fault(self, error: Any) -> CallError:
        status, said = error.status_code, self.endpoint.redacted(error.response.text)
        names = {str(error.code), str(error.type)}
        too_long = status in (400, 422) and bool(TOO_LONG.search(said))
        says = {"true": True, "false": False}.get(error.response.headers.get("x-should-retry"))
        later = status in (408, 409, 429) or status >= 500 if says is None else says
        return CallError(
            said,
            later=later and not names & NO_CREDIT,
            wait=_wait(error.response.headers),
            of_the_question=status == 413 or bool(names & OF_THE_QUESTION) or too_long,
            status=status,
        )

    def _read(self, body: Any) -> Answer:
        choice = body["choices"][0]
        message = choice.get("message") or {}
        # Some servers leave `content` out instead of sending null (if all tokens went into the thought).
        text = _text(message.get("content") if message else choice["text"])
        thought = any(message.get(name) for name in ("reasoning_content", "reasoning"))
        return Answer(text if text is None else self.endpoint.redacted(text), choice, _usage(body), thought)


def _text(content: Any) -> str | None:
    """Return the text of a message's content, which is a text or a list of parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError(f"content is {type(content).__name__}")
    parts = [part if isinstance(part, str) else part.get("text") for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def _usage(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the numbers of tokens of prompt and completion; None unless both are numbers."""
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return None
    counts: tuple[Any, Any] = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return counts if all(type(n) is int and n >= 0 for n in counts) else None


def _wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a reply requires: retry-after-ms, or retry-after in seconds or as a date."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            wait = float(milliseconds) / 1000
        elif (after := headers.get("retry-after", "")).strip().replace(".", "", 1).isdigit():
            wait = float(after)
        else:
            wait = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return None if math.isnan(wait) else min(max(wait, 0.0), LONGEST_WAIT)
