"""Engines, which draw continuations: transformers in this process (the default), vLLM, or an OpenAI-compatible server."""

from typing import Any

from plo.backbone.adapters import adapter_folder
from plo.backbone.model import Backbone
from plo.backbone.pretrained import SHIPPED
from plo.configured import HyperParameterError, read_call
from plo.subjects.endpoint import read_endpoint
from plo.subjects.engines.engine import TOGETHER, Adapter, Engine, Request
from plo.subjects.engines.local import Local
from plo.subjects.engines.served import Served
from plo.subjects.engines.vllm_engine import Vllm, check_installed, of_numbers
from plo.subjects.subject import SubjectError

__all__ = [
    "DEFAULT", "TOGETHER", "Adapter", "Engine", "Local", "Request", "Served", "Vllm", "check_engine", "engine_of", "setting_of",
]  # fmt: skip

DEFAULT = "transformers"


def kind_of(spec: str) -> str:
    """Return the kind of an engine: transformers, vllm or server. Samples of two kinds have different noise.

    Raises:
        SubjectError: `spec` names no engine.
    """
    return "server" if spec.startswith("server:") else _read(spec)[0]


def setting_of(spec: str) -> str:
    """Return the kind of an engine with the options that change what it samples, as in "vllm(quantization='fp8')".

    Raises:
        SubjectError: `spec` names no engine.
    """
    kind = kind_of(spec)
    options = of_numbers(_read(spec)[1]) if kind == "vllm" else {}
    return kind + (f"({', '.join(f'{name}={value!r}' for name, value in sorted(options.items()))})" if options else "")


def check_engine(spec: str) -> None:
    """Check that an engine can be used, without loading a model or calling a server.

    Raises:
        SubjectError, EndpointError, MissingExtra: it cannot.
    """
    if kind_of(spec) == "server":
        read_endpoint(spec.removeprefix("server:"), "server")
    elif kind_of(spec) == "vllm":
        check_installed()


def engine_of(spec: str, backbone: Backbone, tokenizer: Any) -> Engine:
    """Return the engine `spec` for the base of a backbone and its adapters.

    Args:
        spec: "vllm", with arguments of `vllm.LLM` as in "vllm(gpu_memory_utilization=0.4)", or "server:MODEL@URL".

    Raises:
        SubjectError, EndpointError, MissingExtra: the engine cannot be used, or not with this base.
    """
    if spec.startswith("server:"):
        return Served(spec, lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    _, options = _read(spec)
    name = backbone.settings.name
    base = str(SHIPPED[name]()) if name in SHIPPED else name
    if adapter_folder(base) is not None:
        raise SubjectError(
            f"sampler={spec} needs a whole model, and {base} is an adapter, which plo merges as it loads it: merge it into its "
            f"model, save that and name it, or leave out sampler."
        )
    config = backbone.policy.peft_config["default"] if backbone.settings.peft == "lora" else None
    rank = max(config.r, *config.rank_pattern.values(), 1) if config is not None else 1
    return Vllm(base, str(backbone.head_dtype).removeprefix("torch."), rank, options)


def _read(spec: str) -> tuple[str, dict[str, Any]]:
    try:
        kind, options = read_call(spec)
    except HyperParameterError:
        kind, options = "", {}
    if kind not in (DEFAULT, "vllm") or (kind == DEFAULT and options):
        raise SubjectError(
            f"sampler={spec} is no sampler: write transformers, vllm, vllm(gpu_memory_utilization=0.4) or "
            f"server:MODEL@http://HOST:PORT/v1."
        )
    return kind, options
