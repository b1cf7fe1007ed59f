"""Direct comparison of recorded cells, by hand: three variants whose texts a judge orders."""

import pandas as pd
import pytest

from plo.config import ConfigError
from plo.evals.judges import JudgeSession
from plo.experiment.head_to_head import head_to_head
from plo.tracking import Tracker

LONG, MIDDLE, SHORT = "much the longest", "longer", "no"


def longer(prompt, a, b):
    return float(len(b) > len(a))


longer.version = "1"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Record cells with their samples: {(variant, seed): {prompt_id: text}}."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLO_HOME", str(folder / "home"))
        tracker = Tracker(str(folder / "plo.db"))
        yield _recorder(tracker)


def _recorder(tracker):
    def make(texts, name="mine"):
        parent = tracker.comparison(name, f"key of {name}", {})
        for (variant, seed), by_prompt in texts.items():
            tags = {"plo.variant": variant, "plo.loss": variant, "plo.seed": str(seed)}
            run = tracker.start_cell(parent, f"{variant} {seed}", f"{variant} seed {seed}", tags)
            rows = [{"prompt_id": p, "sample": 0, "prompt": f"p{p}", "text": text} for p, text in by_prompt.items()]
            run.table(pd.DataFrame(rows), "samples.json")
            run.finish({"reward": 0.0})
        return tracker, tracker.comparisons(name)[0]

    return make


def test_three_variants_on_common_prompts(record):
    """long beats middle beats short, but that middle and short tie on prompt 1: equal texts, which the judge does not see."""
    texts = {("long", s): {p: LONG for p in range(4)} for s in (0, 1)}
    texts |= {("middle", s): {p: MIDDLE for p in range(4)} for s in (0, 1)}
    texts |= {
        ("short", s): {p: MIDDLE if p == 1 else SHORT for p in range(3)} for s in (0, 1)
    }  # prompt 3 is not common
    tracker, comparison = record(texts)
    judging = JudgeSession(longer)
    rated = head_to_head(comparison, tracker, judging)
    assert [one.variant for one in rated] == ["long", "middle", "short"]
    assert [one.games for one in rated] == [12, 12, 12] and [one.seeds for one in rated] == [2, 2, 2]
    assert [one.win_rate for one in rated] == pytest.approx([1, (2 * 2 + 2 * 0.5) / 12, 2 * 0.5 / 12])
    assert rated[0].elo > rated[1].elo > rated[2].elo and sum(one.elo for one in rated) == pytest.approx(0, abs=1e-6)
    # 3 prompts x 3 pairs, the same for both seeds; of those of prompt 1 one is a tie, and two are the same question
    assert judging.counts.asked == 2 * (3 * 3 - 2)
    cells = {cell.name: cell for cell in comparison.cells()}
    (finding,) = cells["middle seed 1"].findings
    assert finding.metrics["games"] == 6 and finding.metrics["win_rate"] == pytest.approx(2.5 / 6)
    items = finding.items
    assert items["win_rate"].dropna().mean() == pytest.approx(2.5 / 6)
    assert items["elo"].dropna().mean() == pytest.approx(finding.metrics["elo"])
    games = finding.table("head_to_head_games.json")
    assert sorted(games["opponent"]) == ["long"] * 3 + ["short"] * 3 and set(games["won"]) == {0.0, 0.5, 1.0}
    head_to_head(comparison, tracker, judging)  # again: nothing is asked, nothing recorded twice
    assert judging.counts.asked == 14 and len(comparison.cells()[0].findings) == 1
    head_to_head(
        comparison, tracker, JudgeSession(longer, repeats=2)
    )  # another result, for which 14 questions are asked
    (twice,) = [one for one in comparison.cells()[0].findings if one.params.get("repeats") == "2"]
    usages = [cell.findings[0].about.get("usage") for cell in comparison.cells()]
    assert usages == [twice.about["usage"]] + [None] * 5 and usages[0]["answered"] == 14


def test_a_limit_is_shared_by_seeds_and_pairs(record):
    texts = {
        (v, s): {p: text * (p + 1) for p in range(6)}
        for v, text in (("a", "x"), ("b", "yy"), ("c", "zzz"))
        for s in (0, 1)
    }
    tracker, comparison = record(texts, "limited")
    judging = JudgeSession(longer)
    rated = head_to_head(comparison, tracker, judging, games=12)
    assert [one.games for one in rated] == [8, 8, 8]  # 12 games of two players each
    before = judging.counts.asked
    head_to_head(comparison, tracker, judging, games=18)
    assert judging.counts.asked - before <= 12  # the first 12 games are among the 18
    assert len(comparison.cells()[0].findings) == 2  # two settings, two sections


def test_faults_are_named(record):
    tracker, comparison = record({("a", 0): {0: "x"}}, "lone")
    with pytest.raises(ConfigError, match="Fewer than two variants of lone have recorded samples"):
        head_to_head(comparison, tracker, JudgeSession(longer))
    with pytest.raises(ConfigError, match="texts of hh: run plo eval lone --suite hh first"):
        head_to_head(comparison, tracker, JudgeSession(longer), suite="hh")
    tracker, apart = record({("a", 0): {0: "x"}, ("b", 1): {0: "y"}}, "apart")
    with pytest.raises(ConfigError, match="No two variants of one seed"):
        head_to_head(apart, tracker, JudgeSession(longer))
