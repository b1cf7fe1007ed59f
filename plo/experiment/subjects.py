"""What evaluations of level "model" can ask for text: a trained policy, a file of outputs, a server."""

import gzip
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.config import EvaluationConfig
from plo.data import tokenize_prompt
from plo.data.rows import Row, Text, to_chat
from plo.data.tokenize import template_of, tokenize_rows
from plo.evals import EvaluationError
from plo.experiment.cell import log_ratio_margins
from plo.experiment.sampling import Prompt, continuations
from plo.experiment.stages import sha256
from plo.paths import plo_home


class Policy:
    """The policy that a backbone holds, or its reference.

    Args:
        identity: of its weights; what it says is kept under this name.
        trained_on: rendered prompts of its training pairs.
        paths: local data by source.
        chat: whether plain prompts go through the chat template; None: they do where there is one.
        as_reference: the subject is the backbone's reference.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Any,
        *,
        name: str,
        seed: int,
        identity: str,
        config: EvaluationConfig,
        trained_on: Collection[str] = (),
        paths: Mapping[str, Path] | None = None,
        chat: bool | None = None,
        as_reference: bool = False,
    ):
        self.backbone, self.tokenizer, self.config = backbone, tokenizer, config
        self.name, self.seed, self.identity = name, seed, identity
        self.trained_on, self.paths = frozenset(trained_on), dict(paths or {})
        self.chat = template_of(tokenizer) is not None if chat is None else chat
        self.as_reference = as_reference
        self.reference: Any = None

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
    ) -> pd.DataFrame:
        asked = [Prompt(tokenize_prompt(prompt, self.tokenizer), self._shown(prompt)) for prompt in prompts]
        settings = {"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
        config = self.config.model_copy(update=settings)
        key = sha256([self.identity, self.seed, settings, config.batch_size, [prompt.ids for prompt in asked]])
        folder = plo_home() / "outputs" / key[:32]
        with self._as():
            return continuations(self.backbone, self.tokenizer, asked, config, self.seed, folder)

    def causal_lm(self) -> tuple[Any, Any]:
        if self.as_reference and not self.backbone.starts_at_reference:
            raise EvaluationError(
                f"The {self.name} is not the model that training starts from: evaluate it by its own name."
            )
        self.backbone.use_packed(False)  # until the evaluation ends: see `evaluations.py`
        return self.backbone.policy.eval(), self.tokenizer

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        if self.reference is None:
            raise EvaluationError(f"{self.name} has no reference to take a log-ratio to.")
        rows = [to_chat(row) if self.chat and not row.conversational else row for row in rows]
        pairs = [pair for _, pair, _ in tokenize_rows(rows, self.tokenizer, self.backbone.longest, "keep_start")]
        fitting = [place for place, pair in enumerate(pairs) if not isinstance(pair, str)]
        if not fitting:
            raise EvaluationError(f"none of the {len(rows)} rows can be scored, the first because: {pairs[0]}.")
        scored, margins = [pairs[place] for place in fitting], np.full(len(rows), np.nan)
        store = ReferenceStore(plo_home() / "reference", 0)
        with self._as():
            margins[fitting] = log_ratio_margins(self.backbone, scored, store.get(self.backbone, scored))
        return margins

    def _as(self) -> AbstractContextManager[None]:
        return self.backbone.reference() if self.as_reference else nullcontext()

    def _shown(self, prompt: Text) -> str:
        if isinstance(prompt, str):
            return prompt
        return self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


class Outputs:
    """A file of a model's outputs: JSON, JSON lines (each also .gz), with `instruction` or `prompt`, and `output` or `text`.

    Raises:
        EvaluationError: the file cannot be read, or lacks these columns.
    """

    chat, reference, seed = True, None, 0
    trained_on: frozenset[str] = frozenset()
    paths: Mapping[str, Path] = {}

    def __init__(self, path: Path):
        self.path = path
        rows = _records(path)
        names = list(rows[0]) if rows else []
        asked = next((name for name in ("instruction", "prompt") if name in names), None)
        said = next((name for name in ("output", "text", "response") if name in names), None)
        if asked is None or said is None:
            raise EvaluationError(
                f"{path} is no file of outputs: it has the columns {', '.join(names) or 'none'}, and wants 'instruction' or "
                f"'prompt', and 'output' or 'text'."
            )
        self.name = str(rows[0].get("generator") or path.stem.split(".")[0])
        self.identity = sha256([[row[asked], row[said]] for row in rows])
        self.texts: dict[str, list[str]] = {}
        for row in rows:
            self.texts.setdefault(_key(row[asked]), []).append(str(row[said]))

    def sample(self, prompts: Sequence[Text], *, samples: int = 1, **settings: Any) -> pd.DataFrame:
        found = []
        for number, prompt in enumerate(prompts):
            texts = self.texts.get(_key(prompt), [])
            if len(texts) < samples:
                raise EvaluationError(
                    f"{self.path} has {len(texts)} outputs where {samples} are wanted for the prompt {_key(prompt)[:80]!r}."
                )
            for k, text in enumerate(texts[:samples]):
                row = {"prompt_id": number, "sample": k, "prompt": _key(prompt), "text": text}
                found.append(row | {"tokens": float("nan"), "finished": True})
        return pd.DataFrame(found)

    def causal_lm(self) -> tuple[Any, Any]:
        raise EvaluationError(
            f"{self.path} holds outputs, and this evaluation needs the model: give its folder or name."
        )

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        self.causal_lm()


class Server(Outputs):
    """An OpenAI-compatible server of completions (vLLM, llama.cpp, `transformers serve`): "server:MODEL@http://host:port/v1"."""

    def __init__(self, spec: str, seed: int, workers: int = 8):
        self.model, _, self.url = spec.removeprefix("server:").partition("@")
        if not self.url.startswith("http"):
            raise EvaluationError(f"{spec!r} names no server: write server:MODEL@http://host:port/v1.")
        self.name, self.seed, self.workers, self.path = self.model, seed, workers, spec
        self.identity = sha256([self.model, self.url])

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
    ) -> pd.DataFrame:
        from openai import OpenAI

        client = OpenAI(base_url=self.url, api_key="none", max_retries=8)
        settings = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens, "model": self.model}

        def ask(number: int, k: int) -> dict[str, Any]:
            prompt = prompts[number]
            own = settings | {"seed": (self.seed * 1_000_003 + number) * 1_009 + k}
            file = plo_home() / "outputs" / "server" / f"{sha256([self.identity, prompt, own])[:32]}.json"
            if not file.exists():
                if isinstance(prompt, str):
                    choice = client.completions.create(prompt=prompt, **own).choices[0]
                    text = choice.text
                else:
                    choice = client.chat.completions.create(messages=prompt, **own).choices[0]
                    text = choice.message.content or ""
                _write(file, {"text": text, "finished": choice.finish_reason == "stop"})
            row = {"prompt_id": number, "sample": k, "prompt": _key(prompt)} | json.loads(file.read_text())
            return row | {"tokens": float("nan")}

        with ThreadPoolExecutor(self.workers) as pool:
            numbers = [(i, k) for i in range(len(prompts)) for k in range(samples)]
            return pd.DataFrame(pool.map(lambda at: ask(*at), numbers))


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    partial.write_text(json.dumps(content))
    os.replace(partial, file)


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        read: Callable = gzip.open if path.suffix == ".gz" else open
        with read(path, "rt", encoding="utf-8") as file:
            text = file.read()
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"The outputs {path} cannot be read: {error}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"The outputs {path} are no list of objects.")
    return rows


def _key(prompt: Text) -> str:
    """What an outputs file calls a prompt: the human's last message, stripped."""
    if not isinstance(prompt, str):
        return prompt[-1]["content"].strip()
    return prompt.strip().removeprefix("Human:").removesuffix("Assistant:").strip()
