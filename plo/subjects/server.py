"""A model behind an OpenAI-compatible server as a subject of evaluations."""

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
from plo.subjects.endpoint import read_endpoint
from plo.subjects.outputs import Outputs, rendered
from plo.subjects.subject import Sampling, SubjectError
from plo.threads import run_all

log = logging.getLogger(__name__)


class Server(Outputs):
    """An OpenAI-compatible server of completions (vLLM, llama.cpp, `transformers serve`): "server:MODEL@http://host:port/v1".

    Its key is the environment variable PLO_KEY_<HOST>, or OPENAI_API_KEY for the default provider. Rate limits, server
    errors, lost connections and malformed answers are retried with growing waits. If the server refuses max_tokens,
    temperature, top_p or seed, requests adapt (see `plo.subjects.client`), which is reported. A prompt that the server
    refuses as too long, or filters, has an empty answer, which is also reported.

    A server does not identify its weights. Answers are kept under model and address, and are returned even when other
    weights are served there under the same name: serve those under another name.

    Args:
        workers: number of concurrent calls.
        retries: number of times that a failed call is repeated.
        timeout: longest duration of a call in seconds.

    Raises:
        EndpointError, MissingExtra: the address is malformed, or the package openai is missing.
        SubjectError: while sampling, the server refuses a call or every prompt, or fails more often than `retries`.
    """

    fixed = False

    def __init__(self, spec: str, seed: int, *, workers: int = 8, retries: int = 8, timeout: float = 600.0):
        self.endpoint = read_endpoint(spec.removeprefix("server:"), "server")
        self.seed, self.workers, self.retries, self.timeout = seed, workers, retries, timeout
        self.name, url = self.endpoint.model, self.endpoint.url
        self.path = f"server:{self.name}@{url}"
        self.identity = sha256([self.name, url])
        self.served = Client(self.endpoint, timeout)

    def sample(self, prompts: Sequence[Text], **settings: Any) -> pd.DataFrame:
        sampling, stop, rows = Sampling(**settings), threading.Event(), {}
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}

        def row(at: tuple[int, int]) -> dict[str, Any]:
            number, k = at
            prompt = prompts[number]
            own = fields | {"seed": (self.seed * 1_000_003 + number) * 1_009 + k}
            file = CACHES["server-outputs"].path(sha256([self.identity, prompt, own | {"model": self.name}])[:32])
            if (said := store.read_json(file)) is None:
                said = self._ask(prompt, own, stop)
                if not said["refused"]:  # a server with another limit or filter may accept it
                    store.write_json(file, said)
            named = {"prompt_id": number, "sample": k, "prompt": rendered(prompt)}
            return named | {"null": False, "refused": "", "adapted": []} | said | {"tokens": float("nan")}

        def awaited(calls: int, seconds: float) -> None:
            most = min(seconds, self.timeout)
            log.warning(
                f"{self.path}: stopping after {calls} calls that are under way (at most {most:g} s). Ctrl-C stops "
                f"at once. Answers so far are kept: the same command continues from there."
            )

        places = [(number, k) for number in range(len(prompts)) for k in range(sampling.samples)]
        run_all(row, places, self.workers, done=rows.__setitem__, stop=stop, awaited=awaited)
        drawn = pd.DataFrame([rows[place] for place in places])
        if len(drawn) and all(drawn["refused"]):
            raise SubjectError(
                f"{self.path} refuses every prompt, the first with: {drawn['refused'].iloc[0][:500]} Check its context "
                f"length and its filter."
            )
        return drawn

    def _ask(self, prompt: Text, fields: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        try:
            ask = lambda: self.served.ask(prompt, fields, ours=fields)  # noqa: E731
            answer = call_with_retries(ask, retries=self.retries, stop=stop)
        except CallError as error:
            if error.of_the_question:  # too long or filtered; other prompts can be answered
                return {"text": "", "finished": float("nan"), "null": False, "adapted": [], "refused": error.said}
            remedy = f"Check the server, the model's name and the key ({self.endpoint.key_name})"
            raise SubjectError(
                f"{self.path} does not answer the prompt {rendered(prompt)[:60]!r}: {error.explained(remedy)}, and start "
                f"again: answers so far are kept."
            ) from error
        return {
            "text": answer.text or "",
            "finished": answer.choice.get("finish_reason") == "stop",
            "null": answer.text is None,
            "adapted": self.served.adaptations,
            "refused": "",
        }
