"""Fill the numbers of the records into FINDINGS.md.jinja and write FINDINGS.md: python findings.py [FOLDER].

The words are written by hand. Where a number changes, read the sentence again that has it.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from variances import compare, read_board, read_values

DIGITS = {"reward": 2, "kl": 2, "efficiency": 2, "credit.r_A": 3, "credit.r_A0": 3, "entropy": 3}
CONTRASTS = {  # as experiment.yaml names them
    "end_attention less its shuffle": ("twdpo(scorer=end_attention)", "twdpo(scorer=shuffled(of=end_attention))"),
    "gold_weights less their shuffle": ("twdpo(scorer=gold_weights)", "twdpo(scorer=shuffled(of=gold_weights))"),
    "sepo less sepo with random scores": ("sepo", "sepo(scorer=random_scores)"),
    "tdpo2 less tdpo1": ("tdpo2", "tdpo1"),
    "adpo(window=1) less adpo(window=16)": ("adpo", "adpo(window=16)"),
}


class Findings:
    """Numbers of a leaderboard as FINDINGS.md writes them; rows are named without the settings that tuning chose."""

    def __init__(self, folder: Path) -> None:
        self.board = read_board(folder / "leaderboard.json.gz")
        self.rows = {short(row["variant"]): row for row in self.board["rows"]}
        self.base = next(name for name, row in self.rows.items() if row["name"] == self.board["baseline"])
        self.design = self.board["design"]
        self.second = json.loads((folder / "confirmation" / "leaderboard.json").read_text("utf-8"))
        tested = [row["name"] for row in self.rows.values() if row["verdict"] or row["name"] == self.board["baseline"]]
        names = {what: tuple(self.rows[name]["name"] for name in both) for what, both in CONTRASTS.items()}
        values = read_values(folder / "values.csv.gz")
        self.contrasts = {
            (what, metric): compare({name: values[metric][name] for name in tested}, names.values())[pair]
            for metric in ("reward", "credit.r_A", "credit.r_A0")
            for what, pair in names.items()
        }

    def mean(self, name: str, metric: str, digits: int | None = None) -> str:
        found = self.rows[name]["metrics"].get(metric, {}).get("mean")
        return "-" if found is None else f"{found:.{DIGITS[metric] if digits is None else digits}f}"

    def gap(self, name: str, metric: str = "reward") -> str:
        """Return the difference of a row from the baseline with its interval."""
        found = self.rows[name]["differences"][metric]
        return interval(found["mean"], found["low"], found["high"], DIGITS[metric])

    def at_kl(self, name: str) -> str:
        """Return the difference in reward at equal KL."""
        found = self.board["matched_kl"]["differences"].get(self.rows[name]["name"])
        return interval(found["mean"], found["low"], found["high"], 2) if found else "not reached"

    def contrast(self, what: str, metric: str = "reward") -> str:
        mean, _, low, high, _ = self.contrasts[what, metric]
        return interval(mean, low, high, DIGITS[metric])

    def verdict(self, name: str) -> str:
        return self.rows[name]["verdict"]

    def count(self, word: str, names: list[str] | None = None) -> int:
        return Counter(self.rows[name]["verdict"] for name in names or self.rows)[word]

    def confirmation(self) -> str:
        """Return the rows of the confirmation as a Markdown table, best first, the model before training last."""
        lines = []
        for row in sorted(
            self.second["rows"], key=lambda row: (row["loss"] == "reference", -row["metrics"]["reward"]["mean"])
        ):
            gap = row["differences"].get("reward")
            change = interval(gap["mean"], gap["low"], gap["high"], 3) if gap else "baseline"
            reward, kl = (row["metrics"][metric]["mean"] for metric in ("reward", "kl"))
            lines.append([short(row["variant"]), f"{reward:.3f}", change, row["verdict"] or "-", f"{kl:.2f}"])
        return table(["variant", "reward", "Δ reward", "verdict", "KL, nats"], lines)

    def tables(self) -> str:
        """Return all rows, rewards at equal KL and contrasts as Markdown."""
        look, metrics = self.design["look"], [name for name in DIGITS if name != "reward"]
        seeds = f"{look} seeds ({len(self.rows[self.base]['runs'])} of the baseline)"
        by_reward = sorted(self.rows, key=lambda name: -self.rows[name]["metrics"]["reward"]["mean"])
        lines = []
        for name in by_reward:
            row, rank = self.rows[name], self.rows[name]["rank"]
            gap = "baseline" if name == self.base else self.gap(name)
            word = row["verdict"] or ("ceiling" if row["ceiling"] else "-")
            place = f"{rank['rank']} [{rank['low']}, {rank['high']}]" if rank else "-"
            others = [self.mean(name, metric) for metric in metrics]
            lines.append([row["variant"], self.mean(name, "reward"), gap, word, place, *others])
        titles = [
            "variant",
            "reward",
            "Δ reward",
            "verdict",
            "rank",
            *(name.removeprefix("credit.") for name in metrics),
        ]
        first = f"Reward and its difference from dpo [95% interval for a new prompt and a new seed]; n = {seeds} x 82 prompts."
        kl, rewards = self.board["matched_kl"]["kl"], self.board["matched_kl"]["rewards"]
        reached = sorted(
            (name for name in self.rows if self.rows[name]["name"] in rewards),
            key=lambda name: -rewards[self.rows[name]["name"]]["mean"],
        )
        matched = []
        for name in reached:
            gap = "baseline" if name == self.base else self.at_kl(name).replace("not reached", "-")
            matched.append([self.rows[name]["variant"], f"{rewards[self.rows[name]['name']]['mean']:.2f}", gap])
        second = f"Reward at a KL of {kl:.2f} nats, interpolated between evaluation points; [95% interval]; not tested."
        compared = list(dict.fromkeys(metric for _, metric in self.contrasts))
        third = f"Contrasts: mean difference [95% interval for a new prompt and a new seed], n = {look} seeds x 82 prompts; not tested."
        contrasts = [[what, *(self.contrast(what, metric) for metric in compared)] for what in CONTRASTS]
        parts = [first, table(titles, lines), second, table(["variant", "reward", "Δ reward"], matched)]
        return "\n\n".join([*parts, third, table(["contrast", *compared], contrasts)])


def short(variant: str) -> str:
    """Return a variant without learning rate and beta."""
    return re.sub(r"beta=[^,)]*(, )?|, (?=beta)", "", variant.split(" @ ")[0]).replace(", )", ")").replace("()", "")


def interval(mean: float, low: float, high: float, digits: int) -> str:
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def render(folder: Path) -> str:
    """Return FINDINGS.md."""
    pages = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    found = Findings(folder)
    names = (
        "mean",
        "gap",
        "at_kl",
        "contrast",
        "verdict",
        "count",
        "tables",
        "confirmation",
        "second",
        "design",
        "board",
        "rows",
    )
    return pages.get_template("FINDINGS.md.jinja").render({name: getattr(found, name) for name in names})


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "FINDINGS.md").write_text(render(folder), encoding="utf-8")
