"""A model behind an OpenAI-compatible server, as something that evaluations of level "model" ask for text."""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from plo import store
from plo.caches import CACHES
from plo.data.rows import Text
from plo.identity import sha256
from plo.retry import call_with_retries
from plo.subjects.client import CallError, Client
from plo.subjects.endpoint import EndpointError, read_endpoint
from plo.subjects.outputs import Outputs, rendered
from plo.subjects.subject import SubjectError
from plo.threads import run_all

log = logging.getLogger(__name__)


class Server(Outputs):
    """An OpenAI-compatible server of completions (vLLM, llama.cpp, `transformers serve`): "server:MODEL@http://host:port/v1".

    Its key is the environment variable PLO_KEY_<HOST> (of the default provider OPENAI_API_KEY), where set. Rate limits, server
    errors, lost connections and what is no completion are asked again, with growing waits. A refusal of max_tokens,
    temperature, top_p or seed is adapted to (see `plo.subjects.client`) and reported. A prompt that the server refuses as too long, or
    filters, has an empty answer and is reported.

    A server tells nothing of its weights: what it says is kept under model and address, and comes back when other weights
    are served there under the same name. Serve them under a name of their own.

    Args:
        workers: calls under way at once.
        retries: times that a failed call is made again.
        timeout: seconds of a call.

    Raises:
        SubjectError: the address is none, or the package is not installed; when asked: the server refuses the call, or
            fails more often than `retries`, or refuses every prompt.
    """

    fixed = False

    def __init__(self, spec: str, seed: int, *, workers: int = 8, retries: int = 8, timeout: float = 600.0):
        try:
            self.endpoint = read_endpoint(spec.removeprefix("server:"), "server")
        except EndpointError as error:
            raise SubjectError(str(error)) from None
        self.model, self.url = self.endpoint.model, self.endpoint.url
        self.name, self.seed, self.workers, self.retries, self.timeout = self.model, seed, workers, retries, timeout
        self.path = f"server:{self.model}@{self.url}"
        self.identity = sha256([self.model, self.url])
        try:
            self.served = Client(self.endpoint, timeout)
        except ImportError:
            raise SubjectError(f"{spec} needs the package openai: pip install 'plo[evals]'.") from None

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
    ) -> pd.DataFrame:
        settings = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens, "model": self.model}

        stop, rows = threading.Event(), {}

        def row(at: tuple[int, int]) -> dict[str, Any]:
            number, k = at
            prompt = prompts[number]
            own = settings | {"seed": (self.seed * 1_000_003 + number) * 1_009 + k}
            file = CACHES["server-outputs"].path(sha256([self.identity, prompt, own])[:32])
            if (said := store.read_json(file)) is None:
                said = self._ask(prompt, own, stop)
                if not said["refused"]:  # another limit or filter of the server may take it
                    store.write_json(file, said)
            named = {"prompt_id": number, "sample": k, "prompt": rendered(prompt)}
            said = {"null": False, "refused": "", "adapted": [], **said}
            return named | said | {"tokens": float("nan")}

        def awaited(calls: int) -> None:
            log.warning(
                f"{self.path}: stopping; {calls} calls under way are waited for (at most {self.timeout:g} s). Ctrl-C leaves at "
                f"once. What it said so far is kept: the same command goes on from there."
            )

        places = [(number, k) for number in range(len(prompts)) for k in range(samples)]
        run_all(row, places, self.workers, done=rows.__setitem__, stop=stop, awaited=awaited)
        drawn = pd.DataFrame([rows[place] for place in places])
        if len(drawn) and drawn["refused"].astype(bool).all():
            raise SubjectError(
                f"{self.path} refuses every prompt, the first with: {drawn['refused'].iloc[0][:500]} See to its context "
                f"length and its filter."
            )
        return drawn

    def _ask(self, prompt: Text, settings: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        fields = {name: value for name, value in settings.items() if name != "model"}
        try:
            call = lambda: self.served.ask(prompt, fields, ours=fields)  # noqa: E731
            answer = call_with_retries(
                call, when=lambda error: getattr(error, "later", False), retries=self.retries, stop=stop
            )
        except CallError as error:
            if error.of_the_question:  # too long, or filtered: the others can be answered
                return {"text": "", "finished": float("nan"), "null": False, "adapted": [], "refused": error.said}
            raise SubjectError(self._unasked(prompt, error)) from error
        finished = answer.choice.get("finish_reason") == "stop"
        adapted = list(self.served.adaptations)
        null = answer.text is None
        return {"text": answer.text or "", "finished": finished, "null": null, "adapted": adapted, "refused": ""}

    def _unasked(self, prompt: Text, error: CallError) -> str:
        asked = repr(rendered(prompt)[:60])
        if error.status == 200:
            return (
                f"{self.path} answers the prompt {asked} with no completion, {error.said}. See that its address is that of an "
                f"OpenAI-compatible server (most end in /v1), and start again: what it said so far is kept."
            )
        said = error.said if error.status is None else f"HTTP {error.status}: {error.said[:500]}"
        return (
            f"{self.path} cannot be asked the prompt {asked}: {said} See to the server, the model's name and the key "
            f"({self.endpoint.key_name}), and start again: what it said so far is kept."
        )
