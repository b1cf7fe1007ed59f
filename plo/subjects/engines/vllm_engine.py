"""vLLM as an engine: one instance for all adapters of a base, with a LoRA request and a seed for each continuation."""

import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any

from plo.extras import MissingExtra, is_installed
from plo.faults import reason
from plo.subjects.engines.engine import TOGETHER, Request, check_read, cut
from plo.subjects.subject import Sampling, SubjectError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
# Defaults of vLLM's options. plo's own copy of the model scores the samples and needs memory too.
OPTIONS = {"gpu_memory_utilization": 0.5, "max_loras": TOGETHER}
# Options that change how fast an answer is drawn, and no number except by rounding.
PLACEMENT = {
    "gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_loras", "max_cpu_loras",
    "max_lora_rank", "enable_lora", "tensor_parallel_size", "enforce_eager", "cpu_offload_gb", "disable_log_stats",
}  # fmt: skip
_INSTANCES: dict[Any, Any] = {}
_NUMBERS: dict[str, int] = {}  # of adapters by identity: vLLM takes two with one number for the same


def check_installed() -> None:
    """Raise a MissingExtra unless vLLM can be imported."""
    if not is_installed("vllm"):
        raise MissingExtra(
            "sampler=vllm needs the package vllm, which plo does not install as it brings a torch of its own: pip install "
            "vllm, or name a server of the model, sampler=server:MODEL@http://HOST:PORT/v1."
        )


def of_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of vLLM that change what is sampled, such as a quantization."""
    return {name: value for name, value in options.items() if name not in PLACEMENT}


class Vllm:
    """Draws with vLLM in this process. Its noise belongs to request seed, position and token, so equal seeds couple policies.

    Args:
        model: folder or hub name of the base.
        dtype: dtype of the weights, such as "bfloat16".
        rank: largest rank of the adapters.
        options: arguments of `vllm.LLM` in place of the defaults.

    Raises:
        MissingExtra: vLLM is not installed.
    """

    at_a_time, together = 1024, TOGETHER

    def __init__(self, model: str, dtype: str, rank: int, options: Mapping[str, Any]):
        check_installed()
        self.model, self.dtype, self.rank, self.options = model, dtype, rank, dict(options)
        numbers = of_numbers(self.options)
        self.identity = ["vllm", sorted(numbers.items())] if numbers else ["vllm"]

    def draw(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        llm = self._llm()
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        adapters: list[Any] = []
        for request in requests:
            if (adapter := request.adapter) is None:
                adapters.append(None)
                continue
            check_read(adapter, "vLLM")
            number = _NUMBERS.setdefault(adapter.identity, len(_NUMBERS) + 1)
            adapters.append(LoRARequest(f"plo-{adapter.identity[:16]}", number, str(adapter.folder)))
        each = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=request.seed,
                stop_token_ids=list(ends),
                detokenize=False,
            )
            for request in requests
        ]
        prompts: list[Any] = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        loras = adapters if any(adapters) else None
        try:
            outputs = llm.generate(prompts, each, lora_request=loras, use_tqdm=False)
        except Exception as error:  # vLLM has errors of many kinds
            raise self._error("cannot sample", error) from error
        return [cut(output.outputs[0].token_ids, ends) for output in outputs]

    def _llm(self) -> Any:
        rank = next((rank for rank in RANKS if rank >= self.rank), self.rank)
        options = OPTIONS | {"dtype": self.dtype, "enable_lora": True, "max_lora_rank": rank} | self.options
        if not options["enable_lora"]:
            options = {name: value for name, value in options.items() if name not in ("max_loras", "max_lora_rank")}
        try:
            return _loaded(self.model, options)
        except Exception as error:
            raise self._error("cannot load", error) from error

    def _error(self, what: str, error: Exception) -> SubjectError:
        return SubjectError(
            f"vLLM {what} {self.model}: {reason(error)}. Set its options, such as "
            f"sampler='vllm(gpu_memory_utilization=0.4, max_model_len=2048)', or leave out sampler."
        )


def _loaded(model: str, options: Mapping[str, Any]) -> Any:
    """Return vLLM's instance for a model. There is one at a time, as each takes its share of the memory at once."""
    key = (model, tuple(sorted(options.items())))
    if key not in _INSTANCES:
        _INSTANCES.clear()
        gc.collect()
        # In this process: another one could not be forked once CUDA is in use, and would change the order of requests.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        _INSTANCES[key] = LLM(model=model, **options)
    return _INSTANCES[key]
