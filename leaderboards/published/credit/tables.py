"""Print the tables of FINDINGS.md from leaderboard.json.gz and values.csv.gz: python tables.py [FOLDER]."""

import re
import sys
from pathlib import Path

from variances import compare, read_board, read_values

CONTRASTS = {  # as experiment.yaml names them
    "end_attention less its shuffle": (r"twdpo\(scorer=end_attention", r"twdpo\(scorer=shuffled\(of=end_attention"),
    "gold_weights less their shuffle": (r"twdpo\(scorer=gold_weights", r"twdpo\(scorer=shuffled\(of=gold_weights"),
    "sepo less sepo with random scores": (r"sepo(?!.*scorer)", r"sepo.*scorer=random_scores"),
    "tdpo2 less tdpo1": ("tdpo2", "tdpo1"),
    "adpo(window=1) less adpo(window=16)": (r"adpo(?!.*window)", r"adpo.*window=16"),
}
SHOWN = {"kl": 2, "efficiency": 2, "credit.r_A": 3, "credit.r_A0": 3, "entropy": 3}
COMPARED = {"reward": 2, "credit.r_A": 3, "credit.r_A0": 3}


def interval(mean, low, high, digits):
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(head, lines):
    print("\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)) + "\n")


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
board = read_board(folder / "leaderboard.json.gz")
values, base, look = read_values(folder / "values.csv.gz"), board["baseline"], board["design"]["look"]
rows = sorted(board["rows"], key=lambda row: -row["metrics"]["reward"]["mean"])
shown = {name: digits for name, digits in SHOWN.items() if name in board["metrics"]}

lines = []
for row in rows:
    gap = row["differences"].get("reward")
    found = "baseline" if row["name"] == base else interval(gap["mean"], gap["low"], gap["high"], 2)
    word = row["verdict"] or ("ceiling" if row["ceiling"] else "-")
    rank = f"{row['rank']['rank']} [{row['rank']['low']}, {row['rank']['high']}]" if row["rank"] else "-"
    means = [row["metrics"].get(name, {}).get("mean") for name in shown]
    means = ["-" if mean is None else f"{mean:.{digits}f}" for mean, digits in zip(means, shown.values(), strict=True)]
    lines.append([row["variant"], f"{row['metrics']['reward']['mean']:.2f}", found, word, rank, *means])
of = f"{look} seeds ({len(next(r for r in rows if r['name'] == base)['runs'])} of the baseline)"
print(f"Reward and its difference from dpo [95% interval for a new prompt and a new seed]; n = {of} x 82 prompts.\n")
table(["variant", "reward", "Δ reward", "verdict", "rank", *(name.removeprefix("credit.") for name in shown)], lines)

if matched := board["matched_kl"]:
    print(
        f"Reward at a KL of {matched['kl']:.2f} nats, interpolated between evaluation points; [95% interval]; not tested.\n"
    )
    at = sorted(matched["rewards"].items(), key=lambda item: -item[1]["mean"])
    titles, gaps = {row["name"]: row["variant"] for row in rows}, matched["differences"]
    differs = {name: interval(gap["mean"], gap["low"], gap["high"], 2) for name, gap in gaps.items()}
    table(
        ["variant", "reward", "Δ reward"],
        [
            [titles[name], f"{one['mean']:.2f}", differs.get(name, "baseline" if name == base else "-")]
            for name, one in at
        ],
    )

names = [row["name"] for row in rows if row["verdict"] or row["name"] == base]
pairs = {what: tuple(next(n for n in names if re.match(p, n)) for p in both) for what, both in CONTRASTS.items()}
found = {metric: compare({name: values[metric][name] for name in names}, pairs.values()) for metric in COMPARED}
print(
    f"Contrasts: mean difference [95% interval for a new prompt and a new seed], n = {look} seeds x 82 prompts; not tested.\n"
)
table(
    ["contrast", *COMPARED],
    [
        [what, *(interval(found[m][pair][0], found[m][pair][2], found[m][pair][3], d) for m, d in COMPARED.items())]
        for what, pair in pairs.items()
    ],
)
