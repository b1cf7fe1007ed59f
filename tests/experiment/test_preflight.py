"""Before anything is trained: needs, columns and gradients of losses, each refused in a sentence with its remedy."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from plo.cli import app
from plo.config import ConfigError
from plo.data import Pair
from plo.experiment.matrix import compare
from plo.experiment.preflight import check_columns, check_losses, losses_with_stages
from plo.losses import LOSSES, LossError, get_loss, register_loss
from plo.scorers import RECIPES, Stage, get_variant, register_scorer


def pair(number, **columns):
    return Pair((2,), (3, 4), (5,), "", f"pairs.jsonl:{number}", columns)


def loss_with(needs=("ref_logps",), function=lambda pairs: -pairs.log_ratio_margin(), **facts):
    register_loss("mine", needs=needs, replace=True, **facts)(function)
    return get_loss("mine")


@pytest.mark.parametrize("entry", [*LOSSES, *RECIPES], ids=lambda entry: entry.name)
def test_every_registered_loss_is_let_through(entry):
    variant = get_variant(entry.name)
    check_losses(losses_with_stages([variant]))
    assert variant.loss.module is None  # nothing was built on it


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            ("ref_logp",),
            r"'mine' \(.*test_preflight.py:\d+\) needs 'ref_logp', which is unknown. Did you mean 'ref_logps'",
        ),
        (("ref_logps", "kl"), r"needs 'kl', .*There are: .*entropy, hidden, kl_pi_ref, .*register_statistic"),
        (("ref_logps", "column:"), "needs 'column:', which is unknown"),
    ],
)
def test_an_unknown_need(needs, message):
    with pytest.raises(ConfigError, match=message):
        check_losses([loss_with(needs)])


def test_a_need_of_a_term_and_of_a_stage_is_checked_too():
    loss_with(("top_p",))
    with pytest.raises(ConfigError, match="needs 'top_p'"):
        check_losses([get_loss("dpo + 0.1*mine")])

    @register_scorer("wants_mine", replace=True, stages=lambda: {"first": Stage(loss="mine")})
    def wants_mine(material):
        yield from ()

    with pytest.raises(ConfigError, match="needs 'top_p'"):
        check_losses(losses_with_stages([get_variant("twdpo(scorer=wants_mine)")]))


@pytest.mark.parametrize(
    "function",
    [
        lambda pairs: -pairs.log_ratio_margin().detach(),
        lambda pairs: torch.tensor([1.0] * len(pairs)),
        lambda pairs: -pairs.chosen.ref_logps.sum(-1),
    ],
)
def test_a_loss_without_gradient(function):
    with pytest.raises(LossError, match=r"'mine' has no gradient in anything that the policy computes.*without detach"):
        check_losses([loss_with(function=function)])
    with pytest.raises(LossError, match="'mine' has no gradient"):  # as a term too, where the others have one
        check_losses([get_loss("dpo + 0.1*mine")])


def test_gradient_through_another_statistic_will_do():
    check_losses([loss_with(("kl_ref_pi",), lambda pairs: pairs.chosen.kl_ref_pi.sum(-1))])
    at = "logps_at(temperature=1.1)"
    check_losses([loss_with((at,), lambda pairs: pairs.chosen[at].sum(-1))])


def test_what_the_loss_touches_or_returns_is_named():
    with pytest.raises(
        LossError, match="The loss 'mine': The statistic 'entropy' is missing: name it in the loss's needs"
    ):
        check_losses([loss_with(function=lambda pairs: pairs.chosen.entropy.sum(-1))])
    with pytest.raises(LossError, match=r"'mine' .* must return one tensor \(pairs,\)"):
        check_losses([loss_with(function=lambda pairs: pairs.chosen.logps)])


def test_a_mistake_inside_a_loss_is_left_to_its_cell():
    check_losses([loss_with(function=lambda pairs: pairs.chosen.logps[0] / "two")])


def test_columns():
    loss = loss_with(("ref_logps", "column:margin"))
    check_columns([loss, get_loss("dpo")], [pair(1, margin=1.0), pair(2, margin=2.0)])
    with pytest.raises(
        ConfigError,
        match=r"'mine' needs .* 'margin', which no row .* has. Existing columns: margins, score. Did you mean 'column:margins'",
    ):
        check_columns([loss], [pair(1, margins=1.0), pair(2, score=2.0)])
    with pytest.raises(ConfigError, match=r"no row of the data has. Existing columns: none. Add"):
        check_columns([loss], [pair(1)])
    with pytest.raises(ConfigError, match=r"which 2 of 3 training rows lack .* the first at pairs.jsonl:2"):
        check_columns([loss], [pair(1, margin=1.0), pair(2), pair(3, score=0.0)])
    with pytest.raises(ConfigError, match="no row"):
        check_columns([get_loss("dpo + 0.1*mine")], [pair(1)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("needs=('ref_logp',))\ndef bad(pairs):\n    return -pairs.chosen.logp()", "needs 'ref_logp'"),
        ("needs=('column:gap',))\ndef bad(pairs):\n    return -pairs.chosen.logp()", "which no row of the data has"),
        (")\ndef bad(pairs):\n    return -pairs.chosen.logp().detach()", "has no gradient"),
        (")\ndef bad(pairs, beta=0.1):\n    return -beta * pairs.chosen.logp()", "takes beta by position"),
        ("level='word')\ndef bad(pairs):\n    return -pairs.chosen.logp()", "must be one of pair, token, batch"),
    ],
)
def test_compare_refuses_before_it_trains_anything(tiny, source, message):
    Path("bad.py").write_text(f"from plo import register_loss\n@register_loss('bad', replace=True, {source}\n")
    settings = tiny().model_dump(mode="json", include={"model", "data", "train", "evaluation"})
    Path("bad.yaml").write_text(json.dumps({**settings, "losses": ["bad"], "plugins": ["bad.py"]}))
    result = CliRunner().invoke(app, ["compare", "bad.yaml"])
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and message in said and "Traceback" not in said
    assert not list(Path("runs").glob("*"))


def test_a_failing_cell_says_one_sentence_and_the_record_has_the_traceback(tiny, caplog):
    from plo.tracking import Tracker

    Path("bad.py").write_text(
        "from plo import register_loss\n@register_loss('bad', replace=True)\n"
        "def bad(pairs):\n    return pairs.chosen.logp() / 'two\\nthree'\n"
    )
    outcome = compare(tiny(losses=["bad"], plugins=["bad.py"]))
    (failed,) = [text for text in caplog.messages if text.startswith("failed")]
    run = next(cell for cell in Tracker(create=False).cells() if cell.name == "bad seed 0")
    assert (
        f"failed bad seed 0: TypeError: unsupported operand type(s) for /: 'Tensor' and 'str' ({Path('bad.py').resolve()}:4)"
        in failed
    )
    assert failed.endswith(f"Traceback: error.txt of run {run.run_id}.")
    assert "Traceback" not in outcome.failed["bad seed 0"] and "\n" not in outcome.failed["bad seed 0"]
    assert "TypeError" in run.tags["plo.error"]
    tracker = Tracker(create=False)
    recorded = tracker._client.download_artifacts(run.run_id, "error.txt")
    assert "Traceback (most recent call last)" in Path(recorded).read_text()


def test_ipo_that_stays_far_from_its_target_is_told_so(tiny, caplog):
    from plo.tracking import Tracker

    caplog.set_level("INFO", "plo")
    compare(tiny(losses=["ipo", "dpo"]))
    notes = [text for text in caplog.messages if text.startswith("note")]
    assert len(notes) == 1 and "ipo seed 0: ipo ends at a mean margin of" in notes[0] and "target of 5:" in notes[0]
    tags = {cell.name: cell.tags for cell in Tracker(create=False).cells()}
    assert "under a tenth of its target" in tags["ipo seed 0"]["plo.notes"] and "plo.notes" not in tags["dpo seed 0"]
