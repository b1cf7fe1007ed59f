"""LoRA adapters by name: reading their settings, and putting them on their base as peft builds them."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from plo.backbone.borrowed import LoraLinear, find_adapter_config_file
from plo.backbone.head import ModelError
from plo.faults import reason

CONFIG = "adapter_config.json"
DOWNLOADED = ["adapter_*", "*token*", "vocab*", "merges.txt", "*.jinja", "*.model"]  # of an adapter on the hub
WHOLE = ("model*.safetensors", "pytorch_model*.bin")  # weights of a model that is no adapter

# Settings that may be in an adapter's file. peft builds the layers, but plo calls the model inside peft's wrapper.
NAMES = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "inference_mode", "runtime_config"}
LAYERS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "lora_dropout",
    "target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "fan_in_fan_out",
}  # fmt: skip
HARMLESS = {"init_lora_weights": (False, "gaussian", "orthogonal")}  # others change the base


def adapter_folder(name: str) -> Path | None:
    """Return the folder of an adapter, downloaded if `name` is on the hub; None if `name` is no adapter.

    Raises:
        ModelError: the folder holds an adapter and a whole model.
    """
    path = Path(name).expanduser()
    if path.exists():
        if not (path / CONFIG).is_file():
            return None
        if whole := next((file for pattern in WHOLE for file in path.glob(pattern)), None):
            raise ModelError(
                f"{path} holds an adapter ({CONFIG}) and a whole model ({whole.name}), and one of them is meant: move the "
                f"other one into another folder."
            )
        return path
    try:
        if find_adapter_config_file(name) is None:
            return None
    except OSError:  # neither a folder nor a hub name: loading the model raises the error
        return None
    return Path(snapshot_download(name, allow_patterns=DOWNLOADED))


def adapter_config(folder: Path, task: str = "CAUSAL_LM") -> dict[str, Any]:
    """Read an adapter's settings, after a check that `put_on` honours all of them.

    Raises:
        ModelError: a setting that plo ignores, or no LoRA adapter.
    """
    file = folder / CONFIG
    damaged = f"{file} is damaged: {{}}. Copy it again from where the adapter was made."
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(damaged.format(reason(error))) from None
    if not isinstance(saved, dict):
        raise ModelError(damaged.format("it holds no settings"))
    if saved.get("peft_type") != "LORA" or not saved.get("base_model_name_or_path"):
        raise ModelError(f"{file} is no LoRA adapter with the name of its base. Merge it into its model and give that.")
    usual = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(LoraConfig)}
    unknown = [
        f"{name}={json.dumps(value)}"
        for name, value in saved.items()
        if name not in NAMES | LAYERS
        and value != usual.get(name)
        and not (name not in usual and value in (False, [], {}))  # of a later peft, and not used
        and value not in HARMLESS.get(name, ())
        and (name, value) != ("task_type", task)
    ]
    if unknown:
        raise ModelError(
            f"{file} says {', '.join(unknown)}, which plo does not know how to honour. Merge it into its model and give that."
        )
    return saved


@contextlib.contextmanager
def loading_base(folder: Path, base: str) -> Iterator[None]:
    """Name the adapter in the error if loading its base inside fails."""
    try:
        yield
    except Exception as error:  # of any library
        message = str(error) if isinstance(error, ModelError) else f"{base!r} cannot be loaded: {reason(error)}."
        raise ModelError(
            f"{message} It is the base of the adapter {folder} (base_model_name_or_path in its {CONFIG})."
        ) from error


def put_on(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return the model with the adapter of a folder on it.

    Raises:
        ModelError: the adapter belongs to another model, or its weights to another adapter.
    """
    if not any(folder.glob("adapter_model*")):
        raise ModelError(f"The adapter {folder} has no weights: copy its adapter_model.safetensors there.")
    try:
        adapted = get_peft_model(model, LoraConfig.from_pretrained(str(folder)))
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    except Exception as error:  # a file that is damaged or a pickle: each library has its own error
        raise ModelError(
            f"The adapter {folder} does not fit its base {model.name_or_path!r}: {reason(error)}. Give the "
            f"base that it was trained on (base_model_name_or_path in its {CONFIG}), or merge it into that and give the result."
        ) from error
    lacking = [name for name in result.missing_keys if ".default" in name]
    if lacking or result.unexpected_keys:
        which = f"lacks {lacking[0]}" if lacking else f"has {result.unexpected_keys[0]}, which its settings do not make"
        raise ModelError(f"The adapter {folder} {which}: its weights and its {CONFIG} are of two adapters.")
    return adapted


def share_kept(adapted: PeftModel, dtype: torch.dtype) -> float:
    """Return the share of an adapter's change that is left after merging it into weights of `dtype`, 0 to 1.

    The share is <round(W + D) - W, D> / <D, D> over the plain LoRA layers, where D is what the adapter adds to W. A change
    below half a unit in the last place of W is lost.
    """
    kept = whole = 0.0
    layers: Iterator[Any] = adapted.modules()
    for layer in layers:
        if isinstance(layer, LoraLinear) and not layer.lora_variant:
            weight = layer.get_base_layer().weight.detach()
            change = layer.get_delta_weight("default").detach().to(weight)
            kept += ((weight + change).to(dtype).to(weight) - weight).mul(change).sum().item()
            whole += change.square().sum().item()
    return kept / whole if whole else 1.0
