"""Compute the study's numbers again from the values of single prompts, with numpy alone: python check.py [FOLDER]."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from recompute import compare, holm, read_board, read_values, word

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
board = read_board(folder / "leaderboard.json.gz")
rows, values = {row["name"]: row for row in board["rows"]}, read_values(folder / "values.csv.gz")
base, design, primary = board["baseline"], board["design"], board["primary"]


def tables(metric, names, look=None):
    seeds = {name: [*rows[name]["runs"]][: None if name == base else look] for name in names}
    known = {name: values[metric][name] for name in names}
    return {name: {seed: known[name][seed] for seed in seeds[name] if seed in known[name]} for name in names}


pairs = [(name, base) for name, row in rows.items() if row["verdict"]]
family, found, words, both = [base, *(name for name, _ in pairs)], {}, {}, []
for look, level in zip(design["looks"], (0.010, 0.015, 0.025), strict=True):  # verdicts, look by look
    if look <= design["look"]:
        found[primary] = compare(tables(primary, family, look), pairs)
        p = {pair: one[4](one[0]) for pair, one in found[primary].items()}
        for pair, (mean, *_, p_of) in found[primary].items():
            if words.get(pair[0], "undecided") == "undecided":
                words[pair[0]] = word(mean, holm(p)[pair], p_of, design["margin"], level)
        alpha = level
assert words == {name: rows[name]["verdict"] for name in words}, "the verdicts differ"
both += [(p[pair], rows[pair[0]]["differences"][primary]["p"]) for pair in pairs]
both += [(holm(p)[pair], rows[pair[0]]["differences"][primary]["p_holm"]) for pair in pairs]
for metric in values:  # means and differences of all metrics
    found.setdefault(metric, compare(tables(metric, family), pairs))
    both += [(np.mean([*values[metric][n].values()]), rows[n]["intervals"][metric]["mean"]) for n in rows]
    for (name, _), one in found[metric].items():
        theirs = rows[name]["differences"][metric]
        both += zip(one[:4], (theirs[key] for key in ("mean", "se", "low", "high")), strict=True)
ranked = [name for name, row in rows.items() if row["rank"]]
tested = compare(tables(primary, ranked), [*combinations(ranked, 2)])
apart = [pair for pair, q in holm({pair: one[4](one[0]) for pair, one in tested.items()}).items() if q < alpha]
better = [pair[0] if tested[pair][0] > 0 else pair[1] for pair in apart]
for name in ranked:
    wins, losses = better.count(name), sum(name in pair for pair in apart) - better.count(name)
    both += [(1 + losses, rows[name]["rank"]["low"]), (len(ranked) - wins, rows[name]["rank"]["high"])]
worst = max(abs(ours - theirs) / max(1, abs(theirs)) for ours, theirs in both)
print(f"{len(words)} verdicts and {len(both)} numbers, computed again; largest relative deviation {worst:.1e}.")
assert worst < 1e-6, "the numbers differ"
