"""Best-of-n as a row: the best of n samples of the reference, its bound of the KL, and what it cannot be run on."""

from functools import partial
from math import log

import pandas as pd
import pytest

from plo.config import ConfigError, load_experiment
from plo.experiment import cell as cells
from plo.experiment.best_of import gold_reward
from plo.experiment.costs import Costs
from plo.experiment.estimate import Estimate
from plo.experiment.matrix import compare
from plo.experiment.plan import plan_comparison
from plo.experiment.workbench import suites, workbench
from plo.leaderboards import read
from plo.pocket import Prompt, ids_of, language
from plo.subjects.sampling import best_of, best_of_kl, held_out_prompts, sample
from plo.tracking import Tracker

N = 4


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = {
        "name": "bon",
        "data": {"source": "pocket", "options": {"pairs": 32}},
        "losses": ["dpo"],
        "best_of": [N],
        "seeds": [3],
        "train": {"steps": 1},
        "evaluation": {"prompts": 5, "samples": 2, "pairs": 8, "suite": ["efficiency"]},
    }
    return lambda **changes: load_experiment(None, settings | changes)


def gold(samples: pd.DataFrame) -> list[float]:
    """The reward of each sample, from the task itself."""
    asked = [Prompt.read(text) for text in samples["prompt"]]
    ids = [ids_of(text, finished=bool(end)) for text, end in zip(samples["text"], samples["finished"], strict=True)]
    return language().walk(asked, ids).reward.sum(1).tolist()


def test_the_bound_of_the_kl():
    assert best_of_kl(2) == pytest.approx(log(2) - 1 / 2, abs=1e-12)
    assert best_of_kl(16) == pytest.approx(4 * log(2) - 15 / 16, abs=1e-12)


def test_the_best_of_n_samples_of_the_reference_is_kept(experiment):
    bench = workbench(experiment())
    config = bench.experiment.evaluation
    prompts = held_out_prompts(bench.data.eval, config.prompts)
    given = (bench.backbone, bench.tokenizer, prompts)
    kept = best_of(*given, config, 3, N, partial(gold_reward, "pocket"))

    drawn = sample(*given, config.model_copy(update={"samples": 2 * N}), 3)  # the policy is not trained
    drawn["gold"] = gold(drawn)
    best = drawn.loc[drawn.groupby([drawn["prompt_id"], drawn["sample"] // N])["gold"].idxmax()].reset_index(drop=True)
    assert kept["text"].tolist() == best["text"].tolist() and set(kept["kl"]) == {best_of_kl(N)}
    assert kept[["prompt_id", "sample"]].values.tolist() == [[i, k] for i in range(5) for k in range(2)]
    assert kept["ref_nll"].tolist() == pytest.approx(best["ref_nll"].tolist(), rel=1e-4)


def test_a_plan_has_the_rows_and_no_evaluations_of_a_model_for_them(experiment):
    plan = plan_comparison(experiment(evaluation={"prompts": 5, "samples": 2, "pairs": 8, "suite": ["credit"]}))
    rows = [one for one in plan.cells if one.variant == "best_of_n(n=4)"]
    assert [(one.name, one.steps, one.state) for one in rows] == [("best_of_n(n=4) seed 3", 0, "to do")]
    units = {unit.name for unit in Estimate(plan, Costs({})).units(plan.cells)}
    assert {"credit of dpo seed 3", rows[0].name} <= units and f"credit of {rows[0].name}" not in units


@pytest.mark.slow
def test_it_is_a_row_that_is_shown_and_not_tested(experiment, monkeypatch):
    assert not compare(experiment()).failed
    (row,) = (cell for cell in Tracker(create=False).cells() if cell.tags["plo.loss"] == "best_of_n")
    kept = row.table("samples.json")
    assert kept["reward"].tolist() == pytest.approx(gold(kept), abs=1e-9)
    assert row.metrics["kl"] == pytest.approx(best_of_kl(N), abs=1e-9) and row.metrics["oracle_queries"] == 5 * 2 * N

    board = read(Tracker(create=False), "bon")
    (shown,) = (one for one in board.rows if one.loss == "best_of_n")
    assert shown.is_ceiling and shown.verdict is None and shown.rank is None
    assert any("best_of_n(n=4): the best of n" in note for note in board.notes), board.notes

    monkeypatch.setattr(cells, "best_of", lambda *_: pytest.fail("sampled again"))
    assert not compare(experiment()).failed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"source": "hh"}}, "no known reward.*pocket, sentiment"),
        ({"evaluation": {"temperature": 0.7}}, "temperature=1"),
    ],
)
def test_what_it_cannot_be_run_on(experiment, changes, words):
    with pytest.raises(ConfigError, match=words):
        suites(experiment(**changes))
