"""Compute the study's numbers again with numpy alone: python check.py [FOLDER]. variances.json.gz is variances.py's."""

import csv
import gzip
import json
import sys
from pathlib import Path

import numpy as np

folder, values, words = Path(sys.argv[1] if sys.argv[1:] else sys.path[0]), {}, {}
files = {file.name: gzip.decompress(file.read_bytes()) for file in folder.glob("*.gz")}
board, variances = (json.loads(files[f"{name}.json.gz"]) for name in ("leaderboard", "variances"))
rows, base, design = {row["name"]: row for row in board["rows"]}, board["baseline"], board["design"]
for line in csv.DictReader(files["values.csv.gz"].decode().splitlines()):
    for metric in (name for name in board["metrics"] if line.get(name)):
        values.setdefault((metric, line["row"]), {}).setdefault(line["seed"], []).append(float(line[metric]))
values = {key: np.array([*by_seed.values()]) for key, by_seed in values.items()}  # [seeds, prompts]
both = [(y.mean(), rows[name]["intervals"][metric]["mean"]) for (metric, name), y in values.items()]
angles = np.linspace(0, np.pi / 2, 100_001)  # Student's |t| is root(free) * tan(angle), whose density is cos^(free - 1)
cosines, squares = np.cos((angles[1:] + angles[:-1]) / 2), np.tan(angles[:-1]) ** 2
steps = [(board["primary"], *step) for step in zip(design["looks"], (0.010, 0.015, 0.025), strict=True)]
for metric, look, level in [*steps, *((metric, steps[-1][1], 0) for metric in variances)]:  # level 0: no verdict
    tests, holm = {}, 0
    for name in (name for name, row in rows.items() if row["verdict"]):  # its difference from the baseline
        (v_a, free_a, shared), (v_b, free_b, _) = (variances[metric][str(look)][row] for row in (name, base))
        a, b, more = values[metric, name][:look], values[metric, base][:look], values[metric, base][look:]
        (n, prompts), m, gaps = a.shape, len(more), a - b  # n seeds that both have, m that only the baseline has
        weight = 1 / (1 + v_b / n / (v_b / m + shared / n + shared / m))  # of the n in the baseline's mean: the best
        mean, of_seeds = a.mean() - weight * b.mean() - (1 - weight) * more.mean(), (v_a + weight * v_b) / n
        rest = gaps - gaps.mean(0) - gaps.mean(1)[:, None] + gaps.mean()
        of_prompts = gaps.mean(0).var(ddof=1) / prompts - (rest**2).sum() / (n - 1) / (prompts - 1) / n / prompts
        se, free = np.sqrt(of_seeds + max(of_prompts, 0)), min(free_a, free_b)
        tails = [(cosines ** (degrees - 1))[::-1].cumsum()[::-1] for degrees in (prompts - 1, free)]
        log_p, log_few = (-np.log(tail / tail[0] + 1e-300) for tail in tails)
        many, few = squares * (prompts - 1), np.interp(log_p, log_few, squares * free)  # critical t^2 at every level
        t = np.sqrt(many + (few - many) * (of_seeds / se**2) ** 1.5)
        half = se * np.interp(-np.log(0.05), log_p, t)
        p, beyond = (np.exp(-np.interp(gap / se, t, log_p)) for gap in (abs(mean), design["margin"] - abs(mean)))
        tests[name] = dict(mean=mean, se=se, degrees=free, low=mean - half, high=mean + half, p=p, beyond=beyond)
    for rank, (name, test) in enumerate(sorted(tests.items(), key=lambda item: item[1]["p"])):
        holm = test["p_holm"] = min(1, max(holm, test["p"] * (len(tests) - rank)))
        word = "equivalent" if test["beyond"] / 2 < 0.9 * level else "undecided"  # two one-sided tests
        word = word if holm >= level else "better" if test["mean"] > 0 else "worse"
        words[name] = word if words.get(name, "undecided") == "undecided" else words[name]
        theirs = {} if level else rows[name]["differences"][metric]
        both += [(test[key], theirs[key]) for key in test.keys() & theirs.keys()]
worst = max(abs(ours - theirs) / max(1, abs(theirs)) for ours, theirs in both)
print(f"{len(words)} verdicts and {len(both)} numbers, computed again; largest relative deviation {worst:.1e}.")
assert worst < 1e-7 and words == {name: row["verdict"] for name, row in rows.items() if row["verdict"]}, "they differ"
