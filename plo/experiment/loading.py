"""From what a user names (a model, an adapter, a file of outputs, a server) to something that evaluations can ask."""

import hashlib
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoTokenizer

from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.config import EvaluationConfig, ModelConfig
from plo.evals import EvaluationError
from plo.evals.judges.local import tokenizer_identity
from plo.experiment.server import Server
from plo.experiment.subjects import Outputs, Policy
from plo.experiment.workbench import computed_with
from plo.identity import sha256

LONGEST = 2048  # tokens, of a model that no experiment says more of
# adapter_model, model-00001-of-00002, pytorch_model; the first that are there are read
WEIGHTS = ("*model*.safetensors", "*model*.bin")

# What an adapter's file may say. peft builds the layers, but plo calls the model inside, past what peft does around it.
NAMES = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "inference_mode", "runtime_config"}
LAYERS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "lora_dropout",
    "target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "fan_in_fan_out",
}  # fmt: skip
HARMLESS = {  # other values of `init_lora_weights` change the base
    "task_type": ("CAUSAL_LM",),
    "init_lora_weights": (False, "gaussian", "orthogonal"),
}


def load_subject(what: str, seed: int, config: EvaluationConfig) -> Policy | Outputs:
    """A subject by its name: a file of outputs, "server:MODEL@URL", 'embedded', a folder (a model or a LoRA adapter), a hub name.

    Load it once: for another seed `subject.seed = seed` suffices, as nothing but the noise of sampling depends on it.

    Raises:
        EvaluationError, ModelError: it cannot be had.
    """
    path = Path(what).expanduser()
    if what.startswith("server:"):
        return Server(what, seed)
    if path.is_file():
        return Outputs(path)
    is_adapter = (path / "adapter_config.json").exists()
    saved = _adapter_config(path) if is_adapter else {}
    name = saved["base_model_name_or_path"] if is_adapter else str(path) if path.is_dir() else what
    backbone, tokenizer = load_backbone(ModelConfig(name=name), longest=LONGEST)
    if getattr(backbone.causal_lm, "_hf_peft_config_loaded", False):
        raise EvaluationError(f"{what} is an adapter on the hub: download it (hf download {what}) and give its folder.")
    backbone.reset(seed)  # fresh adapters, which add nothing whatever the seed
    how = computed_with(backbone)
    if is_adapter:
        if (path / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(path)
        how.append(weights_digest(path))
        _put_on(backbone, path)
    how.append(tokenizer_identity(tokenizer))  # recorded results depend on how prompts are rendered
    name = "/".join(path.parts[-2:]) if path.is_dir() else what
    return Policy(backbone, tokenizer, name=name, seed=seed, identity=sha256(how), config=config)


def weights_digest(folder: Path) -> str:
    """sha256 of a saved policy: its weights, and of an adapter how they are used.

    Raises:
        EvaluationError: there are no weights.
    """
    files = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), None)
    if files is None:
        raise EvaluationError(
            f"{folder} has no weights: neither {WEIGHTS[0]} nor {WEIGHTS[1]} is there. Copy them there, or name another folder."
        )
    adapter = folder / "adapter_config.json"
    saved = json.loads(adapter.read_text(encoding="utf-8")) if adapter.exists() else {}
    settings = {name: value for name, value in saved.items() if name not in NAMES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter's file says, all of it something that `_put_on` heeds."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("peft_type") != "LORA" or not saved.get("base_model_name_or_path"):
        raise EvaluationError(
            f"{file} is no LoRA adapter with the name of its base. Merge it into its model and give that."
        )
    usual = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(LoraConfig)}
    unknown = [
        f"{name}={json.dumps(value)}"
        for name, value in saved.items()
        if name not in NAMES | LAYERS
        and value != usual.get(name)
        and not (name not in usual and value in (False, [], {}))  # of a later peft, and not used
        and value not in HARMLESS.get(name, ())
    ]
    if unknown:
        raise EvaluationError(
            f"{file} says {', '.join(unknown)}, which plo does not know how to honour. Merge it into its model and give that."
        )
    return saved


def _put_on(backbone: Backbone, folder: Path) -> None:
    """Give the backbone's model the adapter as peft builds it, in place of its own, which know of rank, alpha and targets alone."""
    try:
        policy = get_peft_model(backbone.policy.unload(), LoraConfig.from_pretrained(str(folder)))
        result = set_peft_model_state_dict(policy, load_peft_weights(str(folder), device="cpu"))
    except (OSError, ValueError, RuntimeError) as error:
        raise EvaluationError(
            f"The adapter {folder} does not fit its base {backbone.settings.name!r}: {' '.join(str(error).split())[:300]}. Give the base that it was "
            f"trained on (base_model_name_or_path in its adapter_config.json), or merge it into that and give the result."
        ) from error
    lacking = [name for name in result.missing_keys if ".default" in name]
    if lacking or result.unexpected_keys:
        which = f"lacks {lacking[0]}" if lacking else f"has {result.unexpected_keys[0]}, which its settings do not make"
        raise EvaluationError(
            f"The adapter {folder} {which}: its weights and its adapter_config.json are of two adapters."
        )
    backbone.policy = policy.eval()
