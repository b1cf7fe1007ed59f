"""The protocol of engines, which draw continuations from any number of models that share a base."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plo.subjects.subject import Sampling, SubjectError

TOGETHER = 8  # adapters that are drawn with at the same time
# Settings of an adapter that vLLM passes over, so that it would sample another model (vllm/lora/peft_helper.py).
PASSED_OVER = ("alpha_pattern", "rank_pattern", "lora_bias", "target_parameters", "trainable_token_indices")


@dataclass(frozen=True)
class Adapter:
    """A saved LoRA adapter.

    Attributes:
        identity: sha256 of its weights and settings.
        folder: folder in peft's format.
    """

    identity: str
    folder: Path


@dataclass(frozen=True)
class Request:
    """A continuation to draw.

    Attributes:
        prompt: token ids.
        key: 64-bit number that fixes the noise of every token, equally for every model: `plo.subjects.noise.noise_key`.
        adapter: adapter to draw with; None: the base of the engine.
    """

    prompt: tuple[int, ...]
    key: int
    adapter: Adapter | None = None

    @property
    def seed(self) -> int:
        """Seed for engines with noise of their own: 31 bits of the key, which every server takes."""
        return self.key % 2**31


class Engine(Protocol):
    """Something that draws continuations of token ids.

    Attributes:
        identity: what draws depend on in addition to model, prompts, keys and settings. It is part of the key under which
            samples are kept.
        at_a_time: number of requests of one model that a call should have; samples are kept after each call.
        together: number of models that a call may have.
    """

    identity: list[Any]
    at_a_time: int
    together: int

    def draw(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        """Return the token ids of each request's continuation, with the token that ended it.

        Args:
            sampling: settings; its number of samples does not matter here.
            ends: tokens that end a continuation.

        Raises:
            SubjectError: the engine cannot draw; the message names the remedy.
        """
        ...


def check_read(adapter: Adapter, engine: str) -> None:
    """Raise a SubjectError if an adapter has settings that vLLM passes over.

    Args:
        engine: its name, for the message.
    """
    file = adapter.folder / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    if lost := [name for name in PASSED_OVER if saved.get(name)]:
        raise SubjectError(
            f"{engine} passes over {', '.join(lost)} of the adapter {adapter.folder}, and would sample another model: leave out "
            f"sampler."
        )


def cut(response: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return a response up to and including its first token of `ends`."""
    first = next((i for i, token in enumerate(response) if token in ends), len(response))
    return list(response[: first + 1])
