"""An OpenAI-compatible server as an engine: of a model, and of its adapters where the server loads them (`vllm serve`)."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from plo import store
from plo.caches import CACHES
from plo.identity import sha256
from plo.retry import call_with_retries
from plo.subjects.client import Answer, CallError, Client
from plo.subjects.endpoint import read_endpoint
from plo.subjects.engines.engine import TOGETHER, Adapter, Request, check_read, cut
from plo.subjects.subject import Sampling, SubjectError
from plo.threads import run_all

log = logging.getLogger(__name__)
NO_MATTER = {"without stop_token_ids", "without return_token_ids"}  # responses are cut, and texts tokenised, here
OURS = ("temperature", "top_p", "max_tokens", "seed", "stop_token_ids", "return_token_ids")
Said = dict[str, Any]  # ids: token ids of a continuation; adapted: changes of the request that the server required


class Served:
    """Draws with a server that has the base, "server:MODEL@http://host:port/v1", by its completions of token ids.

    The server loads adapters from their folders, which it must see, as vLLM does if it is started with
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --generation-config vllm`.
    The ids of an answer are those that the server returns, or else those of its text. Each answer is kept on disk.

    Args:
        tokenize: returns the token ids of a text.
        workers: number of concurrent calls.
        retries: number of times that a failed call is repeated.
        timeout: longest duration of a call in seconds.

    Raises:
        EndpointError, MissingExtra: the address is malformed, or the package openai is missing.
    """

    at_a_time, together = 256, TOGETHER

    def __init__(
        self,
        spec: str,
        tokenize: Callable[[str], Sequence[int]],
        *,
        workers: int = 32,
        retries: int = 8,
        timeout: float = 600.0,
    ):
        self.endpoint = read_endpoint(spec.removeprefix("server:"), "server")
        self.spec = f"server:{self.endpoint.model}@{self.endpoint.url}"
        self.identity: list[Any] = ["server", self.endpoint.model, self.endpoint.url]
        self.tokenize, self.workers, self.retries, self.timeout = tokenize, workers, retries, timeout
        self._said: set[str] = set()  # changes that were reported
        self._clients: dict[Adapter | None, Client] = {None: Client(self.endpoint, timeout)}

    def draw(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        for adapter in dict.fromkeys(request.adapter for request in requests):
            if adapter is not None and adapter not in self._clients:
                self._clients[adapter] = self._loaded(adapter)
        stop, found = threading.Event(), dict[int, Said]()
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}

        def drawn(place: int) -> Said:
            request = requests[place]
            own = fields | {"seed": request.seed, "stop_token_ids": list(ends), "return_token_ids": True}
            adapter = request.adapter.identity if request.adapter else None
            file = CACHES["server-outputs"].path(sha256([self.identity, adapter, request.prompt, own])[:32])
            said, client = store.read_json(file), self._clients[request.adapter]
            if said is None:
                ids = self._ids(self._ask(client, request, own, stop), request, ends)
                said = {"ids": ids, "adapted": client.adaptations}
                store.write_json(file, said)
            return said if isinstance(said, dict) else {"ids": said, "adapted": []}  # kept by an earlier version

        def awaited(calls: int, seconds: float) -> None:
            log.warning(f"{self.spec}: stopping after {calls} calls that are under way. Ctrl-C stops at once.")

        run_all(drawn, range(len(requests)), self.workers, done=found.__setitem__, stop=stop, awaited=awaited)
        changes = {change for said in found.values() for change in said["adapted"]} - self._said
        for change in sorted(changes - NO_MATTER):
            log.warning(f"{self.spec} samples {change}, as the server requires.")
        self._said |= changes
        return [found[place]["ids"] for place in range(len(requests))]

    def _ask(self, client: Client, request: Request, fields: dict[str, Any], stop: threading.Event) -> Answer:
        try:
            ask = lambda: client.ask(list(request.prompt), fields, ours=OURS)  # noqa: E731
            return call_with_retries(ask, retries=self.retries, stop=stop)
        except CallError as error:
            remedy = f"Check the server, the model's name and the key ({self.endpoint.key_name})"
            raise SubjectError(
                f"{self.spec} does not continue a prompt of {len(request.prompt)} tokens: {error.explained(remedy)}, and "
                f"start again: samples so far are kept."
            ) from error

    def _ids(self, answer: Answer, request: Request, ends: Sequence[int]) -> list[int]:
        ids, reason = answer.choice.get("token_ids"), answer.choice.get("finish_reason")
        if not ids:
            ids = [*self.tokenize(answer.text or ""), *ends[: reason == "stop"]]
        if not ids:
            raise SubjectError(
                f"{self.spec} continues a prompt of {len(request.prompt)} tokens with nothing (finish_reason {reason!r}), where a "
                f"sample of the policy has a token: check the server's filter, or name one that has none."
            )
        return cut(ids, ends)

    def _loaded(self, adapter: Adapter) -> Client:
        """Return the client of an adapter, which the server loads unless it has."""
        check_read(adapter, self.spec)
        name, client = f"plo-{adapter.identity[:16]}", self._clients[None]
        try:
            client.load_adapter(name, adapter.folder)
        except CallError as error:
            if "already" not in error.said:
                raise SubjectError(
                    f"{self.spec} does not load the adapter {adapter.folder}: {error.said[:300]}. Start it where it sees that "
                    f"folder, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {self.endpoint.model} --enable-lora "
                    f"--max-lora-rank RANK --generation-config vllm."
                ) from error
        return Client(replace(self.endpoint, model=name), self.timeout)
