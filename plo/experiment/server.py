"""A model behind an OpenAI-compatible server, as something that evaluations of level "model" ask for text."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from plo import store
from plo.data.rows import Text
from plo.evals import EvaluationError
from plo.experiment.subjects import Outputs, rendered
from plo.identity import sha256
from plo.paths import plo_home


class Server(Outputs):
    """An OpenAI-compatible server of completions (vLLM, llama.cpp, `transformers serve`): "server:MODEL@http://host:port/v1".

    Its key is the environment variable OPENAI_API_KEY, where set. Rate limits, server errors and lost connections are
    asked again by OpenAI's client, with growing waits, and so is what is no completion.

    A server tells nothing of its weights: what it says is kept under model and address, and comes back when other weights
    are served there under the same name. Serve them under a name of their own.

    Args:
        workers: calls under way at once.
        retries: times that a failed call is made again.

    Raises:
        EvaluationError: the address is none, or the package is not installed; when asked: the server refuses the call, or
            fails more often than `retries`.
    """

    fixed = False

    def __init__(self, spec: str, seed: int, *, workers: int = 8, retries: int = 8):
        self.model, _, self.url = spec.removeprefix("server:").partition("@")
        if not self.model or not self.url.startswith("http"):
            raise EvaluationError(f"{spec!r} names no server: write server:MODEL@http://host:port/v1.")
        self.name, self.seed, self.workers, self.path = self.model, seed, workers, spec
        self.identity = sha256([self.model, self.url])
        try:
            from openai import OpenAI
        except ImportError:
            raise EvaluationError(f"{spec} needs the package openai: pip install 'plo[evals]'.") from None
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client = OpenAI(base_url=self.url, api_key=key, max_retries=retries)

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

        def row(number: int, k: int) -> dict[str, Any]:
            prompt = prompts[number]
            own = settings | {"seed": (self.seed * 1_000_003 + number) * 1_009 + k}
            file = plo_home() / "outputs" / "server" / f"{sha256([self.identity, prompt, own])[:32]}.json"
            if (said := store.read_json(file)) is None:
                said = self._ask(prompt, own)
                store.write_json(file, said)
            named = {"prompt_id": number, "sample": k, "prompt": rendered(prompt)}
            return named | said | {"tokens": float("nan")}

        with ThreadPoolExecutor(self.workers) as pool:
            numbers = [(i, k) for i in range(len(prompts)) for k in range(samples)]
            return pd.DataFrame(pool.map(lambda at: row(*at), numbers))

    def _ask(self, prompt: Text, settings: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(self.client.max_retries + 1):
            try:
                return self._asked_once(prompt, settings)
            except EvaluationError:
                raise
            except (
                AttributeError,
                IndexError,
                TypeError,
                ValueError,
            ) as error:  # no completion, but half of one, or a page
                fault = error
                time.sleep(min(0.1 * 2**attempt, 8))
        raise EvaluationError(
            f"{self.path} answers the prompt {rendered(prompt)[:60]!r} with no completion. See that its address is that "
            f"of an OpenAI-compatible server (most end in /v1), and start again: what it said so far is kept."
        ) from fault

    def _asked_once(self, prompt: Text, settings: Mapping[str, Any]) -> dict[str, Any]:
        import openai

        try:
            if isinstance(prompt, str):
                choice = self.client.completions.create(prompt=prompt, **settings).choices[0]
                text = choice.text
            else:
                choice = self.client.chat.completions.create(messages=prompt, **settings).choices[0]
                text = choice.message.content or ""
        except openai.OpenAIError as error:
            raise EvaluationError(
                f"{self.path} cannot be asked the prompt {rendered(prompt)[:60]!r}: {type(error).__name__}: {error}. See to "
                f"the server, the model's name and OPENAI_API_KEY, and start again: what it said so far is kept."
            ) from error
        return {"text": text, "finished": choice.finish_reason == "stop"}
