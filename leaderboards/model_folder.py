"""The folder of a trained cell as the hub holds it, and as transformers and peft load it."""

import json
import shutil
from pathlib import Path
from typing import Any

from plo import store
from plo.errors import PloError
from plo.leaderboards.model_card import MANIFEST

ADAPTER = "adapter_config.json"
BASE = "base_model_name_or_path"
LEFT_OUT = (store.SUMS, "README.md")  # checksums of plo, and the empty card that peft writes


class PushError(PloError, RuntimeError):
    """A trained cell cannot be published. The message names the remedy."""


def is_adapter(model: Path) -> bool:
    """Return whether a folder holds a LoRA adapter rather than a whole model."""
    return (model / ADAPTER).is_file()


def base_of(model: Path, trained_from: str) -> str:
    """Return the name of the model that an adapter needs, or `trained_from` for a whole model."""
    if is_adapter(model):
        return str(json.loads((model / ADAPTER).read_text("utf-8"))[BASE])
    return trained_from


def write_model(model: Path, folder: Path, card: str, manifest: dict[str, Any], base: str) -> list[Path]:
    """Write a trained model with its card and manifest into an empty folder, and return the files.

    Args:
        model: folder of the trained model or adapter.
        base: name of the model that an adapter is loaded on.

    Raises:
        PushError: the folder has files already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PushError(
            f"{folder} has files already, which could be mixed up with these: name a new folder, --out FOLDER."
        )
    shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if is_adapter(folder):
        settings = json.loads((folder / ADAPTER).read_text("utf-8")) | {BASE: base}
        store.write_text(folder / ADAPTER, json.dumps(settings, indent=2) + "\n")
    store.write_text(folder / "README.md", card)
    store.write_text(folder / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    return sorted(path for path in folder.rglob("*") if path.is_file())
