"""Judges behind any server that speaks OpenAI's chat protocol: OpenAI, vLLM, llama.cpp, `transformers serve`."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from plo.evals.answers import split_thought
from plo.evals.judges.fitting import fit_texts
from plo.evals.judges.judge import Judge, JudgeError, Question, TransientError, Verdict
from plo.evals.judges.template import Template
from plo.subjects.client import Answer, CallError, Client
from plo.subjects.endpoint import PROVIDER, read_endpoint

MOST = 0.5  # mass of the first token above which the labels' log-probs are the verdict
DAY = 86_400  # seconds, the longest time-out of a socket
UNLIMITED = 1024  # tokens assumed for an answer without a limit


class OpenAI(Judge):
    """The judge `openai:<model>[@base_url]`, asked at temperature 0.

    With a first_token prompt, p = P(label b) / (P(label a) + P(label b)) over the 20 likeliest first tokens; tokens that are
    the same label up to white space are added up. The text is read instead, without a thought, if the server gives no
    log-probs, the two labels have at most half of the mass, or the judge thinks first. With any other prompt the text is
    always read. A judge that thinks needs room: max_tokens=4096.

    A question that the server refuses as too long, or filters, is unreadable. Rate limits, server errors, time-outs,
    lost connections, and answers that are no chat completion (malformed JSON, no choices) are `TransientError`s, which
    `JudgeSession` retries. If the server refuses temperature, max_tokens or log-probs, `plo.subjects.client` adapts the request.

    The key is in the environment variable OPENAI_API_KEY for the default provider, and PLO_KEY_<HOST> for any other host
    (PLO_KEY_LOCALHOST). An experiment file can name any host, and no host is sent the key of another.

    Args:
        argument: the model, and after "@" the server's address, which usually ends in /v1.
        max_tokens: maximum length of the answer; default: what the prompt says, else 1 with a first_token prompt and 512
            with any other.
        logprobs: request log-probs; False for a server that refuses the field.
        price_in, price_out: money per million tokens of prompt and answer. Without prices a server other than the default
            provider costs nothing. Where the server does not report tokens, they are estimated from the texts' length.
        concurrency: maximum number of simultaneous calls.
        timeout: maximum duration of a call in seconds.
        retries: how often a failed call is retried.
        longest: maximum length of a question in characters; longer texts lose their middle. None: they are sent whole.
        request: further fields of the request; one that is None is left out ({"temperature": None}).

    Raises:
        EndpointError, MissingExtra: the address is malformed, or the package openai is missing.
        JudgeError: there is no key; when asked: the server refuses.
        TransientError: a call failed for now.
    """

    template: Template
    when_refused = (
        "Name the judge with an option in brackets: request={'FIELD': VALUE} for a field that it requires, None for one "
        "that it refuses, logprobs=false without log-probs, longest=CHARACTERS for a small context"
    )

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
        timeout: Annotated[float, Field(gt=0, le=DAY)] = 120.0,
        retries: NonNegativeInt = 8,
        longest: PositiveInt | None = None,
        request: dict[str, Any] | None = None,
    ):
        self.endpoint = read_endpoint(argument, "openai", PROVIDER)
        own = "@" in argument
        self.name = f"openai:{self.endpoint.model}@{self.endpoint.url}" if own else f"openai:{argument}"
        self.template, self.concurrency, self.retries, self.timeout = template, concurrency, retries, timeout
        first = template.answer == "first_token"
        fields = {"temperature": 0, "max_tokens": max_tokens or template.tokens or (1 if first else 512)}
        if first and logprobs:
            fields |= {"logprobs": True, "top_logprobs": 20}
        self.ours = fields.keys() - (request or {}).keys() - ({"max_tokens"} if max_tokens else set())
        fields |= request or {}
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.longest = longest
        self.version = json.dumps([template.identity, self.fields, longest], sort_keys=True)
        free = math.nan if self.endpoint.is_provider else 0.0
        self.price_in = free if price_in is None else price_in / 1e6
        self.price_out = free if price_out is None else price_out / 1e6
        self._by_length = False
        if self.endpoint.is_provider and self.endpoint.key is None:
            raise JudgeError(
                f"The judge {self.name} needs a key: set the environment variable OPENAI_API_KEY, or name your own "
                f"server, openai:{self.endpoint.model}@http://HOST:PORT/v1."
            )
        self.served = Client(self.endpoint, timeout)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return [self._ask(question) for question in questions]

    @property
    def remarks(self) -> list[str]:
        notes = [f"{self.name} is asked {how}, as its server requires." for how in self.served.adaptations]
        if self._by_length:
            notes.append(
                f"The server of {self.name} does not report tokens: costs are estimated with 3 bytes of text per token, "
                f"without hidden reasoning."
            )
        return notes

    def estimate(self, questions: Sequence[Question]) -> float:
        """Return the cost with 3 bytes of text per token and every answer at its maximum length."""
        most = self.fields.get("max_tokens") or self.fields.get("max_completion_tokens") or UNLIMITED
        return self._tokens(questions) * self.price_in + len(questions) * most * self.price_out

    def _tokens(self, questions: Sequence[Question]) -> float:
        return sum(len(m["content"].encode()) + 30 for q in questions for m in self._messages(q)) / 3

    def _messages(self, question: Question) -> list[dict[str, str]]:
        texts, fill = (question.prompt, question.a, question.b), self.template.fill
        if self.longest is None:
            return fill(*texts)
        count = lambda *texts: sum(len(message["content"]) for message in fill(*texts))  # noqa: E731
        return fill(*fit_texts(self.name, texts, count, self.longest))

    def _ask(self, question: Question) -> Verdict:
        try:
            answer = self.served.ask(self._messages(question), self.fields, self.ours)
        except CallError as error:
            if error.of_the_question:
                return Verdict(None, error.said, refused=True)
            cost = _known(self.estimate([question])) if error.answered else 0.0  # the most that it may have cost
            unasked = self._unasked(error)
            raise (TransientError(unasked, error.wait, cost) if error.later else JudgeError(unasked)) from error
        text, p = answer.text or "", self._from_logprobs(answer)
        return Verdict(self.template.read(text) if p is None else p, text, self._cost(question, answer))

    def _cost(self, question: Question, answer: Answer) -> float:
        tokens_in, tokens_out = answer.usage or (0, 0)
        if answer.usage is None and (self.price_in or self.price_out):
            self._by_length = True
            tokens_in = self._tokens([question])
            tokens_out = len((answer.text or "").encode()) / 3
        return _known(tokens_in * self.price_in + tokens_out * self.price_out)

    def _unasked(self, error: CallError) -> str:
        remedy = "Check the server, the key and the model's name"
        if error.status in (401, 403) and self.endpoint.key is None:
            remedy = f"Set the environment variable {self.endpoint.key_name} to the key of this host"
        if error.status in (400, 422):
            remedy = self.when_refused
        said = error.explained(remedy)
        return f"The judge {self.name} cannot be asked: {said}, and start again: verdicts received so far are kept."

    def _from_logprobs(self, answer: Answer) -> float | None:
        """Return P(label b) over both labels; None if the first token is no verdict, or its log-probs lack OpenAI's form."""
        if self.template.answer != "first_token" or answer.thought or split_thought(answer.text or "").thought:
            return None
        try:
            first = answer.choice["logprobs"]["content"][0]["top_logprobs"]
            likely = [(t["token"].strip(), math.exp(t["logprob"])) for t in first]
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError):
            return None
        a, b = (sum(p for token, p in likely if token == label) for label in self.template.labels)
        return b / (a + b) if a + b > MOST else None


def _known(cost: float) -> float:
    """Return a cost, or 0 where prices are unknown."""
    return 0.0 if math.isnan(cost) else cost
