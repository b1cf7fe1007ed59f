"""Judges behind any server that speaks OpenAI's chat protocol: OpenAI, vLLM, llama.cpp, `transformers serve`."""

import email.utils
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from plo.evals.judges.fitting import fit
from plo.evals.judges.judge import Judge, JudgeError, Question, TransientError, Verdict
from plo.evals.judges.template import Template

OPENAI = "https://api.openai.com/v1"
# Errors that are about this one question, by code or type, or by what the many servers say of a text that is too long.
OF_THE_QUESTION = {"content_filter", "content_policy_violation", "context_length_exceeded", "exceed_context_size_error"}
TOO_LONG = re.compile(r"context[ _](length|size|window)|too long|maximum\b.*\btokens", re.IGNORECASE | re.DOTALL)
LONGEST_WAIT = 600.0  # seconds, whatever the server asks for


class OpenAI(Judge):
    """`openai:<model>[@base_url]`, asked at temperature 0.

    With a first_token prompt p = P(label b) / (P(label a) + P(label b)) over the first token's 20 likeliest, those that
    are the same label but for white space added up; where the server gives no log-probs, or neither label is among
    them, the text is read. With a last_line prompt the text is read.

    A question that the server refuses as too long, or filters, is unreadable. Rate limits, server errors, time-outs,
    lost connections, and answers that are no chat completion (malformed JSON, no choices) are `TransientError`s, after
    which `Judging` calls again.

    Args:
        argument: the model, and after "@" the server's address, which ends in /v1 on most.
        max_tokens: of the answer; 1 with a first_token prompt and 512 with a last_line one where not given.
        logprobs: ask for log-probs; False for a server that refuses the field.
        price_in, price_out: money per million tokens of prompt and answer. A server of one's own costs nothing where
            they are not given.
        concurrency: calls under way at once.
        timeout: seconds.
        retries: times that a failed call is made again.
        longest: characters of a question; texts lose their middle to fit. None: they are sent whole.
        request: further fields of the request; one that is None is left out ({"temperature": None}).

    Raises:
        JudgeError: no model is named, no key, or the package is not installed; when asked: the server refuses the call.
            TransientError: the call failed for now.
    """

    def __init__(
        self,
        argument: str,
        template: Template,
        *,
        max_tokens: PositiveInt | None = None,
        logprobs: bool = True,
        price_in: NonNegativeFloat | None = None,
        price_out: NonNegativeFloat | None = None,
        concurrency: PositiveInt = 8,
        timeout: PositiveFloat = 120.0,
        retries: NonNegativeInt = 8,
        longest: PositiveInt | None = None,
        request: dict[str, Any] | None = None,
    ):
        self.model, self.base_url = re.fullmatch(r"(.*?)(?:@(https?://.+))?", argument, re.DOTALL).groups()
        self.name, self.template, self.concurrency, self.retries = f"openai:{argument}", template, concurrency, retries
        if not self.model or "@http" in self.model:
            raise JudgeError(
                f"The judge {self.name!r} names no model: write openai:MODEL or openai:MODEL@http://HOST:PORT/v1, options "
                f"after it in brackets."
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
        return openai.OpenAI(api_key=key, base_url=self.base_url or OPENAI, timeout=timeout, max_retries=0)

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
        import openai

        create = self.client.chat.completions.with_raw_response.create  # raw: a body that is no JSON is ours to see to
        try:
            # extra_body lets fields through that the client's signature lacks.
            reply = create(model=self.model, messages=self._messages(question), extra_body=self.fields)
        except openai.APIStatusError as error:
            if _of_the_question(error):
                return Verdict(None, error.response.text, refused=True)
            if _for_now(error):
                raise TransientError(self._unasked(error), _wait(error.response.headers)) from error
            raise JudgeError(self._unasked(error)) from error
        except openai.APIConnectionError as error:  # a time-out too, and what timed out may have been answered
            raise TransientError(self._unasked(error), cost=self._most(question)) from error
        except openai.OpenAIError as error:
            raise JudgeError(self._unasked(error)) from error
        try:
            return self._read(json.loads(reply.content))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise TransientError(
                f"The judge {self.name} answered with no chat completion, {reply.content[:200]!r}. See that its address "
                f"is that of an OpenAI-compatible server (most end in /v1).",
                _wait(reply.headers),
                self._most(question),
            ) from error

    def _most(self, question: Question) -> float:
        """What a call costs whose answer does not say."""
        most = self.estimate([question])
        return 0.0 if math.isnan(most) else most

    def _unasked(self, error: Exception) -> str:
        status, said = getattr(error, "status_code", None), str(error)
        if status is not None:  # the client's own words leave out what is not in OpenAI's form
            said = f"HTTP {status}: {error.response.text[:500]}"
        remedy = "See to the server, the key and the model's name"
        if status in (400, 422):
            remedy = (
                f"A server without log-probs takes {self.name}(logprobs=false), a small context "
                f"{self.name}(longest=CHARACTERS), one that wants or refuses a field {self.name}(request={{'FIELD': "
                f"VALUE}}), None to leave it out"
            )
        return (
            f"The judge {self.name} cannot be asked: {type(error).__name__}: {said}\n{remedy}, and start again: the "
            f"verdicts had so far are kept."
        )

    def _read(self, body: Any) -> Verdict:
        choice = body["choices"][0]
        answer = choice["message"]["content"] or ""
        usage = body.get("usage") or {}
        tokens = [usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0]
        cost = tokens[0] * self.price_in + tokens[1] * self.price_out
        p = self._from_logprobs(choice) if self.template.answer == "first_token" else None
        return Verdict(self.template.read(answer) if p is None else p, answer, 0.0 if math.isnan(cost) else cost)

    def _from_logprobs(self, choice: dict[str, Any]) -> float | None:
        """P(label b) over both labels, or None where they are not there, or not in OpenAI's form."""
        try:
            likely = [
                (t["token"].strip(), math.exp(t["logprob"])) for t in choice["logprobs"]["content"][0]["top_logprobs"]
            ]
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError):
            return None
        a, b = (sum(p for token, p in likely if token == label) for label in self.template.labels)
        return b / (a + b) if a + b > 0 else None


def _of_the_question(error: Any) -> bool:
    """Whether the server refuses this question, and may take others."""
    if error.status_code == 413 or OF_THE_QUESTION & {str(error.code), str(error.type)}:
        return True
    return error.status_code in (400, 422) and bool(TOO_LONG.search(error.response.text))


def _for_now(error: Any) -> bool:
    """Whether the call may succeed later: what the server says, else by the status."""
    says = {"true": True, "false": False}.get(error.response.headers.get("x-should-retry"))
    return error.status_code in (408, 409, 429) or error.status_code >= 500 if says is None else says


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait: retry-after-ms, or retry-after in seconds or as a date."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            wait = float(milliseconds) / 1000
        elif (after := headers.get("retry-after", "")).strip().replace(".", "", 1).isdigit():
            wait = float(after)
        else:
            wait = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(wait, 0.0), LONGEST_WAIT)
