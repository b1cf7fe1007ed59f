"""A judge that goes away while a comparison is evaluated: what it said is kept, and the next start asks only for the rest."""

import pandas as pd
import pytest

from plo.evals import Findings, register_evaluation
from plo.evals.judges import register_judge
from plo.evals.judges.judge import Judge, TransientError, Verdict
from plo.experiment.matrix import compare
from plo.tracking import Tracker

ASKED = ["Case 1:", "Case 50:"]


@pytest.fixture
def judge():
    """A judge that answers so many questions and then is away; it notes what it is asked, and what it answered."""

    class Away(Judge):
        name, version, retries = "away", "1", 5
        left, asked, answered = 0, [], []

        def __init__(self, argument, template):
            self.template = None

        def judge(self, questions):
            Away.asked += questions
            if not Away.left:
                raise TransientError(
                    "The judge away cannot be asked: start again: verdicts received so far are kept.", wait=0
                )
            Away.left -= 1
            Away.answered += questions
            return [Verdict(1.0)]

    register_judge("away")(Away)

    @register_evaluation("duel", level="model", higher_is_better={"win_rate": True})
    def duel(subject, judging):
        texts = subject.sample(ASKED, max_new_tokens=4)["text"]
        found = judging.verdicts(pd.DataFrame({"prompt": ASKED, "a": "another", "b": f"{subject.name}: " + texts}))
        items = pd.DataFrame({"prompt_id": [0, 1], "win_rate": found["win"]})
        return Findings({"win_rate": items["win_rate"].mean()}, items)

    return Away


def test_the_cells_are_trained_and_a_rerun_asks_only_for_what_is_missing(tiny, judge):
    config = {"prompts": 3, "samples": 1, "max_new_tokens": 4, "suite": ["duel"], "judge": "away"}
    experiment, judge.left = tiny(evaluation=config), 5  # 4 for the reference, both orders of two; then 1 of sft's
    failed = compare(experiment).failed
    assert list(failed) == ["duel of sft seed 0", "duel of dpo seed 0"]
    assert "start again: verdicts received so far are kept. It was called 6 times." in failed["duel of sft seed 0"]
    assert "It was called 2 times." in failed["duel of dpo seed 0"]  # it is known to be away
    assert len(judge.answered) == 5 and len(judge.asked) == 5 + 6 + 2
    cells = {cell.name: cell for cell in Tracker(create=False).cells()}
    assert {cell.status for cell in cells.values()} == {"FINISHED"}
    assert [name for name, cell in cells.items() if cell.findings] == ["reference seed 0"]

    judge.left = 99
    assert not compare(experiment).failed
    assert len(judge.answered) == len(set(judge.answered)) == 12  # nothing was paid for twice
    assert all(cell.findings for cell in Tracker(create=False).cells())
