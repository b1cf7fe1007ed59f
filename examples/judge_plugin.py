"""A judge of your own, measured against gold labels.

    plo judge-check longer pairs.jsonl --plugin examples/judge_plugin.py
    plo eval NAME --suite hh --judge longer --plugin examples/judge_plugin.py

Run as a script, it writes three labelled pairs and checks itself on them.
"""

import json
import subprocess
import sys
from pathlib import Path

from plo.evals.judges import register_judge


@register_judge("longer")
def longer(prompt: str, a: str, b: str) -> float:
    """Return P(b is better): 1 for the longer answer, 1/2 for answers of one length."""
    return float(len(b) > len(a)) if len(a) != len(b) else 0.5


PAIRS = [
    {"prompt": "What is 2 + 2?", "a": "4", "b": "It may well be five.", "gold": 0},
    {"prompt": "Name a colour.", "a": "No.", "b": "Blue, as the sky.", "gold": 1},
    {"prompt": "Is water wet?", "a": "Yes, it is.", "b": "Nope", "gold": 0},
]

if __name__ == "__main__":
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    command = ["judge-check", "longer", "pairs.jsonl", "--plugin", __file__, "--json"]
    card = subprocess.run([sys.executable, "-m", "plo", *command], check=True, capture_output=True, text=True).stdout
    accuracy = json.loads(card)["accuracy"]["value"]
    print(f"accuracy of `longer` on {len(PAIRS)} pairs: {accuracy:.2f}")
