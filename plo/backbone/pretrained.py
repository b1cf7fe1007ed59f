"""Models and tokenizers by name: 'embedded', 'pocket', a folder or a hub name, of a model or of a LoRA adapter."""

import difflib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from plo.backbone.adapters import CONFIG, adapter_config, adapter_folder, loading_base, put_on, share_kept
from plo.backbone.borrowed import rename
from plo.backbone.head import ModelError
from plo.embedded import embedded_model
from plo.pocket.model import pocket_model

SHARE_KEPT = 0.9  # of what an adapter changes; less is left of it in the model's dtype: a warning
SHIPPED = {"embedded": embedded_model, "pocket": pocket_model}  # functions that return the folder of a model
TASKS = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSequenceClassification": "SEQ_CLS"}


def pretrained(kind: type, name: str, dtype: torch.dtype | str, **keywords: Any) -> tuple[PreTrainedModel, Any]:
    """Load the model of a name, and its tokenizer.

    An adapter is merged into its base, in float32, so that whatever is trained or measured later starts from the two
    together. Its base may be an adapter too. If its folder holds no tokenizer, the tokenizer is that of the base.

    Args:
        kind: the class of transformers that loads it.
        dtype: dtype of the weights; "auto": the one that they are saved in, for an adapter that of its base.
        keywords: further arguments of the model's `from_pretrained`; `revision`, the commit of a hub model, is the tokenizer's too.

    Raises:
        ModelError: there is no such folder, or an adapter that does not fit.
        OSError, ValueError, ImportError: transformers cannot load it.
    """
    adapters, base = _chain(name, TASKS[kind.__name__])
    with _loading(adapters, base):
        model = kind.from_pretrained(base, dtype="auto" if adapters else dtype, **keywords)
        tokenizer = _tokenizer(adapters, base, keywords.get("revision"))
    if not adapters:
        return model, tokenizer
    own = model.dtype if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = model.float()
    for name, folder in adapters:
        adapted = put_on(model, folder)
        if own != torch.float32 and (kept := share_kept(adapted, own)) < SHARE_KEPT:
            warnings.warn(
                f"{name}: merged into weights in {str(own).removeprefix('torch.')}, {kept:.0%} of what this adapter changes "
                f"is left, the rest is lost to rounding. model.dtype=float32 keeps it all.",
                stacklevel=3,
            )
        model = adapted.merge_and_unload()
        rename(model, str(folder.resolve()) if Path(_place(name)).is_dir() else name)
    return model.to(own), tokenizer


def pretrained_tokenizer(name: str) -> tuple[Any, GenerationConfig]:
    """Load a model's tokenizer and settings of generation without its weights; names are those of `pretrained`.

    Raises:
        ModelError: there is no such folder.
        OSError, ValueError: transformers cannot load them.
    """
    adapters, base = _chain(name)
    with _loading(adapters, base):
        try:
            generation = GenerationConfig.from_pretrained(base)
        except OSError:  # a model without the file: transformers reads its config then
            generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(base))
        return _tokenizer(adapters, base), generation


def _chain(name: str, task: str = "CAUSAL_LM", above: tuple[Path, ...] = ()) -> tuple[list[tuple[str, Path]], str]:
    """Return name and folder of the adapters that a model consists of, from the base up, and the place of their base."""
    name = str(SHIPPED[name]()) if name in SHIPPED else name
    check_there(name)
    folder = adapter_folder(name)
    if folder is None:
        return [], _place(name)
    base = adapter_config(folder, task)["base_model_name_or_path"]
    above = (*above, folder.resolve())
    if Path(_place(base)).resolve() in above:
        raise ModelError(
            f"{folder / CONFIG} names as its base an adapter that is built on it: mend base_model_name_or_path."
        )
    with loading_base(folder, base):
        below, base = _chain(base, task, above)
    return [*below, (name, folder)], base


def _loading(adapters: Sequence[tuple[str, Path]], base: str) -> AbstractContextManager[None]:
    return loading_base(adapters[0][1], base) if adapters else nullcontext()


def _tokenizer(adapters: Sequence[tuple[str, Path]], base: str, revision: str | None = None) -> Any:
    with_own = (folder for _, folder in reversed(adapters) if (folder / "tokenizer_config.json").exists())
    fixed = {"revision": revision} if revision else {}
    return AutoTokenizer.from_pretrained(next(with_own, base), **fixed)


def _place(name: str) -> str:
    """Return a folder with the user's home written out, or a hub name as it is."""
    return str(Path(name).expanduser())


def check_there(name: str) -> None:
    """Raise a ModelError, which names folders that may be meant, if a name is that of a folder without a model."""
    path = Path(_place(name))
    if path.is_dir():
        files = ("config.json", CONFIG)
        if any((path / file).is_file() for file in files):
            return
        inside = sorted(file.parent for file in path.glob("*/*config.json") if file.name in files)
        hint = f" {inside[0]} does: give that." if inside else ""
        raise ModelError(f"The folder {name} holds no model: neither {' nor '.join(files)} is there.{hint}")
    if path.exists():
        raise ModelError(f"{name} is a file, and a model is a folder: give the folder that holds its config.json.")
    looks_like_one = name.startswith((".", "/", "~")) or len(path.parts) > 2
    if looks_like_one or (len(path.parts) == 2 and path.parent.is_dir()):
        close = near_folders(name)
        hint = f" Near it: {', '.join(close)}." if close else ""
        raise ModelError(f"The model folder {name} is not there.{hint} Mend the path.")


def near_folders(name: str) -> list[str]:
    """Return folders alongside whose names are close to one that does not exist."""
    path = Path(_place(name))
    if not path.parent.is_dir():
        return []
    there = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir())
    longer = [folder for folder in there if folder.startswith(path.name)]
    return [str(path.parent / folder) for folder in longer[:3] or difflib.get_close_matches(path.name, there)]
