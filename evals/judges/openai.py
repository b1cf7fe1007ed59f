"""Judges behind any server that speaks OpenAI's chat protocol: OpenAI, vLLM, llama.cpp, `transformers serve`."""

import json
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from plo.evals.judges.fitting import fit
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.template import Template

OPENAI = "https://api.openai.com/v1"
# Errors that are about this one question: it counts as unreadable, and the others are asked.
OF_THE_QUESTION = {"content_filter", "content_policy_violation", "context_length_exceeded"}


class OpenAI(Judge):
    """`openai:<model>[@base_url]`, asked at temperature 0.

    With a first_token prompt p = P(label b) / (P(label a) + P(label b)) over the first token's 20 likeliest, those that
    are the same label but for white space added up; where the server gives no log-probs, or neither label is among
    them, the text is read. With a last_line prompt the text is read.

    Rate limits, server errors, time-outs and lost connections are asked again by OpenAI's client with growing waits;
    answers that are no chat completion (malformed JSON, no choices) by this class.

    Args:
        argument: the model, and after "@" the server's address, which ends in /v1 on most.
        max_tokens: of the answer; 1 with a first_token prompt and 512 with a last_line one where not given.
        logprobs: ask for log-probs; False for a server that refuses the field.
        price_in, price_out: money per million tokens of prompt and answer. A server of one's own costs nothing where
            they are not given.
        concurrency: calls under way at once.
        timeout: seconds.
        retries: times that a failed call is made again.
        longest: characters of a question; texts lose their middle to fit. None: the server takes them whole.
        request: further fields of the request; one that is None is left out ({"temperature": None}).

    Raises:
        JudgeError: no model is named, no key, or the package is not installed; when asked: the server refuses the call,
            or fails more often than `retries`.
    """

    def __init__(
        self,
        argument: str,
        template: Template,
        *,
        max_tokens: int | None = None,
        logprobs: bool = True,
        price_in: float | None = None,
        price_out: float | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 8,
        longest: int | None = None,
        request: dict[str, Any] | None = None,
    ):
        self.model, self.base_url = re.fullmatch(r"(.*?)(?:@(https?://.+))?", argument, re.DOTALL).groups()
        self.name, self.template, self.concurrency, self.retries = f"openai:{argument}", template, concurrency, retries
        if not self.model or "@http" in self.model:
            raise JudgeError(
                f"The judge {self.name!r} names no model: write openai:MODEL or openai:MODEL@http://HOST:PORT/v1."
            )
        first = template.answer == "first_token"
        fields = {"temperature": 0, "max_tokens": max_tokens or (1 if first else 512)}
        if first and logprobs:
            fields |= {"logprobs": True, "top_logprobs": 20}
        fields |= request or {}
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.longest = longest
        self.version = json.dumps([template.identity, self.fields, longest], sort_keys=True)
        free = 0.0 if self.base_url else math.nan
        self.price_in = free if price_in is None else price_in / 1e6
        self.price_out = free if price_out is None else price_out / 1e6
        self.client = self._client(timeout)

    def _client(self, timeout: float) -> Any:
        try:
            import openai
        except ImportError as error:
            raise JudgeError(f"The judge {self.name} needs the package openai: pip install 'plo[evals]'.") from error
        key = os.environ.get("OPENAI_API_KEY") or ("none" if self.base_url else None)
        if key is None:
            raise JudgeError(
                f"The judge {self.name} needs a key: set the environment variable OPENAI_API_KEY, or name a server of "
                f"your own, openai:{self.model}@http://HOST:PORT/v1."
            )
        # The default address is given too: the client would take another from the environment, unknown to our name.
        return openai.OpenAI(api_key=key, base_url=self.base_url or OPENAI, timeout=timeout, max_retries=self.retries)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return [self._ask(question) for question in questions]

    def estimate(self, questions: Sequence[Question]) -> float:
        """A token taken as 3 bytes of text, and every answer as long as it may be."""
        texts = sum(len(m["content"].encode()) + 30 for q in questions for m in self._messages(q))
        most = self.fields.get("max_tokens") or self.fields.get("max_completion_tokens", 0)
        return texts / 3 * self.price_in + len(questions) * most * self.price_out

    def _messages(self, question: Question) -> list[dict[str, str]]:
        texts = (question.prompt, question.a, question.b)
        if self.longest is None:
            return self.template.fill(*texts)
        return self.template.fill(*fit(self.name, texts, self._characters, self.longest))

    def _characters(self, *texts: str) -> int:
        return sum(len(message["content"]) for message in self.template.fill(*texts))

    def _ask(self, question: Question) -> Verdict:
        messages = self._messages(question)
        for attempt in range(self.retries + 1):
            body = self._post(messages, question)
            try:
                return self._read(json.loads(body))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # no chat completion
                time.sleep(min(0.1 * 2**attempt, 8))
        raise JudgeError(
            f"The judge {self.name} answered {self.retries + 1} times with no chat completion, last {body[:200]!r}. "
            f"See that its address is that of an OpenAI-compatible server (most end in /v1)."
        )

    def _post(self, messages: list[dict[str, str]], question: Question) -> bytes:
        import openai

        create = self.client.chat.completions.with_raw_response.create  # raw: a body that is no JSON is ours to see to
        try:
            # extra_body lets fields through that the client's signature lacks.
            return create(model=self.model, messages=messages, extra_body=self.fields).content
        except openai.BadRequestError as error:
            if error.code in OF_THE_QUESTION:
                return json.dumps({"choices": [{"message": {"content": str(error)}}]}).encode()
            raise JudgeError(
                f"The judge {self.name} refuses the question {question.prompt[:60]!r}... ({len(str(messages))} "
                f"characters): {error}. A server without log-probs takes logprobs=false, a small context "
                f"longest=CHARACTERS, another set of fields request={{...}}."
            ) from error
        except openai.OpenAIError as error:
            raise JudgeError(
                f"The judge {self.name} cannot be asked: {type(error).__name__}: {error}. See to the server, the key "
                f"and the model's name, and start again: the verdicts had so far are kept."
            ) from error

    def _read(self, body: Any) -> Verdict:
        choice = body["choices"][0]
        answer = choice["message"]["content"] or ""
        usage = body.get("usage") or {}
        tokens = [usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0]
        cost = tokens[0] * self.price_in + tokens[1] * self.price_out
        p = None
        if self.template.answer == "first_token" and (logprobs := (choice.get("logprobs") or {}).get("content")):
            p = self._from_logprobs(logprobs[0]["top_logprobs"])
        return Verdict(self.template.read(answer) if p is None else p, answer, 0.0 if math.isnan(cost) else cost)

    def _from_logprobs(self, top: list[dict[str, Any]]) -> float | None:
        a, b = (
            sum(math.exp(t["logprob"]) for t in top if t["token"].strip() == label) for label in self.template.labels
        )
        return b / (a + b) if a + b > 0 else None
