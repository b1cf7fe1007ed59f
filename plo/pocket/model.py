"""The reference of the pocket task: a Llama of 102,976 parameters that ships with plo."""

from pathlib import Path

FOLDER = Path(__file__).parent / "reference"  # made by `python -m plo.pocket.make`


def pocket_model() -> Path:
    """Return the folder of the pocket model, which `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` load."""
    return FOLDER
