"""Compare two losses from Python, and read the leaderboard: `python examples/compare_two_losses.py [MODEL]`.

MODEL is a folder or a hub name; without it, the embedded 135M model (minutes, on two CPU cores).
"""

import logging
import sys

from plo.config import load_experiment
from plo.experiment.matrix import compare
from plo.leaderboards import read, to_markdown
from plo.tracking import Tracker

logging.basicConfig(format="%(message)s")
logging.getLogger("plo").setLevel(logging.INFO)  # a line for each cell
experiment = load_experiment(
    None,  # or the path of an experiment file
    {
        "name": "two-losses",
        "model": sys.argv[1] if len(sys.argv) > 1 else "embedded",
        "losses": ["dpo", {"ipo": {"beta": 0.2}}],
        "seeds": [0, 1],
        "data": {"source": "sentiment", "limit": 64, "max_length": 64},
        "train": {"lr": 6e-4, "batch_size": 8},
        "eval_at": [1.0],
        "evaluation": {"prompts": 16, "max_new_tokens": 16, "pairs": 32},
    },
)
outcome = compare(experiment)  # started again, it continues
assert not outcome.failed, outcome.failed

board = read(Tracker(create=False), "two-losses", baseline="dpo")
print(to_markdown(board))
for row in board.rows:
    if "reward" in row.differences:
        gap = row.differences["reward"]
        print(f"{row.name}: {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], {row.verdict or 'not tested'}")
