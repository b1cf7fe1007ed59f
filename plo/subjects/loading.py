"""Loading of subjects by name: of models, LoRA adapters, files of outputs and servers."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from plo.backbone.adapters import NAMES, adapter_config, adapter_folder, loading_base, put_on
from plo.backbone.head import ModelError
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.backbone.pretrained import SHIPPED, check_there
from plo.config import EvaluationConfig, ModelConfig
from plo.data.tokenize import template_of, tokenizer_identity
from plo.faults import reason
from plo.identity import sha256
from plo.subjects.engines import DEFAULT, Adapter
from plo.subjects.outputs import Outputs
from plo.subjects.policy import Policy
from plo.subjects.server import Server
from plo.subjects.subject import SubjectError

LONGEST = 2048  # tokens that a model without an experiment must handle
# adapter_model, model-00001-of-00002, pytorch_model; the first that exist are read
WEIGHTS = ("*model*.safetensors", "*model*.bin")


def load_subject(what: str, seed: int, config: EvaluationConfig) -> Policy | Outputs:
    """Load a subject by its name.

    Names are files of outputs, "server:MODEL@URL", 'embedded', 'pocket', and folders or hub names of models or LoRA adapters. Load a
    subject once and set `subject.seed` for other seeds, as only the noise of sampling depends on it.

    Raises:
        SubjectError, ModelError, EndpointError: the subject cannot be loaded.
    """
    path = Path(what).expanduser()
    if (served := what.startswith("server:")) or path.is_file():
        if config.sampler != DEFAULT:
            raise SubjectError(
                f"sampler={config.sampler} samples a model in memory, and {what} gives its own texts: leave out sampler."
            )
        return Server(what, seed) if served else Outputs(path)
    if what not in SHIPPED:
        check_there(what)
    try:
        folder = None if what in SHIPPED else adapter_folder(what)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {what!r} cannot be found: {reason(error)}. Give a folder or a hub name."
        ) from error
    base = adapter_config(folder)["base_model_name_or_path"] if folder else what
    with loading_base(folder, base) if folder else contextlib.nullcontext():
        backbone, tokenizer = load_backbone(ModelConfig(name=base), longest=LONGEST)
    adapter = None
    backbone.reset(seed)  # new adapters, which add nothing for any seed
    how = computed_with(backbone)
    if folder:
        if (folder / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder)
        how.append(digest := weights_digest(folder))
        adapter = Adapter(digest, folder)
        backbone.policy = put_on(backbone.policy.unload(), folder).eval()
    how.append(tokenizer_identity(tokenizer))  # recorded results depend on how prompts are rendered
    name = "/".join(path.parts[-2:]) if path.is_dir() else what
    chat = template_of(tokenizer) is not None
    about = {"name": name, "seed": seed, "identity": sha256(how), "config": config, "chat": chat, "adapter": adapter}
    return Policy(backbone, tokenizer, **about)


def computed_with(backbone: Backbone) -> list[Any]:
    """Return everything except inputs that a model's numbers depend on: weights, dtype, device, packing, attention."""
    b = backbone
    return [b.start.identity, str(b.compute_dtype), b.device.type, b.packed, b.attention]


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a saved policy: of its weights and, for an adapter, of its settings.

    Raises:
        SubjectError: there are no weights.
    """
    files = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), None)
    if files is None:
        raise SubjectError(
            f"{folder} has no weights, neither {WEIGHTS[0]} nor {WEIGHTS[1]}. Copy them there, or name another folder."
        )
    adapter = folder / "adapter_config.json"
    saved = json.loads(adapter.read_text(encoding="utf-8")) if adapter.exists() else {}
    settings = {name: value for name, value in saved.items() if name not in NAMES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
