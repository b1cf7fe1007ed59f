"""Judges that think, that refuse fields, that cannot be read, and servers that do not say what was used."""

import json
import math

import pandas as pd
import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.evals.alpaca_official import official_template
from plo.evals.judges import JudgeError, JudgeSession, Question, get_judge

LN = math.log


def ask(server, template="instruction", **options):
    return get_judge({f"openai:m@{server.url}": options}, template).judge([Question("p", "x", "y")])[0]


def reply(content, **more):
    """A whole reply with this content of the message."""
    return 200, {"choices": [{"message": {"content": content, **more}}], "usage": {}}, ()


def refusing(*fields, wanted=None):
    """Answers "B", and 400 while one of the fields is there."""

    def says(body):
        for field in fields:
            if field in body:
                hint = f" Use '{wanted}' instead." if wanted else ""
                said = f"Unsupported parameter: '{field}' is not supported with this model.{hint}"
                return 400, {"error": {"message": said, "type": "invalid_request_error", "param": field}}, ()
        return "B"

    return says


# --- thoughts ---


@pytest.mark.parametrize("template", ["instruction", "helpful"])
@pytest.mark.parametrize(
    ("answer", "p"),
    [
        ("<think>A looks good.\nA</think>\n\nB", 1.0),
        ("A looks good.\nA</think>\nB", 1.0),  # its chat template wrote the beginning
        ("<think>\nA", None),  # cut inside the thought: its last line is no verdict
        ("<think>", None),
    ],
)
def test_a_thought_is_no_verdict(serve, answer, p, template):
    assert ask(serve(lambda body: answer), template, max_tokens=4096).p == p


def test_a_judge_that_thinks_is_read_with_alpaca_evals_prompt(serve):
    """The log-probs are those of the thought's first token, where m and M hold 4e-8 of the mass."""
    pytest.importorskip("alpaca_eval")
    top = {"<think>": LN(1 - 4e-8), "m": LN(4e-8), "M": LN(1e-12)}
    server = serve(lambda body: ("<think>both fine</think>M" if body["max_tokens"] > 9 else "<think>", top))
    assert ask(server, official_template(), max_tokens=4096).p == 1.0
    assert ask(server, official_template()).p is None  # no room: not "certain", but unreadable


def test_log_probs_of_the_thought_that_a_server_gives_apart_are_not_the_verdicts(serve):
    top = [{"token": "A", "logprob": LN(0.9)}]
    choice = {
        "message": {"content": "B", "reasoning_content": "A is"},
        "logprobs": {"content": [{"top_logprobs": top}]},
    }
    assert ask(serve(lambda body: (200, {"choices": [choice]}, ())), max_tokens=99).p == 1.0


@pytest.mark.parametrize(
    ("mass", "p"),
    [((0.3, 0.3), 0.5), ((0.1, 0.39), 0.0), ((0.5, 0.02), 0.02 / 0.52), ((4e-8, 1e-12), 0.0)],
)
def test_log_probs_count_where_the_labels_hold_most_of_the_mass(serve, mass, p):
    top = {"A": LN(mass[0]), "B": LN(mass[1]), "The": LN(0.35)}
    assert ask(serve(lambda body: ("A", top))).p == pytest.approx(p)
    assert (ask(serve(lambda body: ("The", top))).p is None) == (sum(mass) < 0.5)  # else the text


# --- content ---


def test_content_as_a_list_of_parts(serve):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "A"}]}, {"type": "text", "text": "B"}]
    assert ask(serve(lambda body: reply(parts))).p == 1.0
    assert ask(serve(lambda body: reply(["B"]))).p == 1.0
    assert ask(serve(lambda body: reply([]))).p is None


@pytest.mark.parametrize("answer", [None, "<think>"])
def test_a_judge_that_can_never_be_read_is_given_up(serve, answer):
    server = serve(lambda body: answer)
    judging = JudgeSession(f"openai:m@{server.url}(concurrency=1)")
    frame = pd.DataFrame({"prompt": [f"p{i}" for i in range(8)], "a": "x", "b": "y"})
    with pytest.raises(JudgeError, match=r"20 answers in a row .*needs room: openai:MODEL\(max_tokens=4096\)"):
        judging.verdicts(frame)
    assert 20 <= len(server.asked) <= 21  # of 16 questions, which would have been asked 4 times each


def test_questions_that_cannot_be_read_among_many_that_can_are_no_reason_to_stop(serve):
    server = serve(lambda body: "?" if "hard" in str(body["messages"]) else "B")
    questions = [Question(f"{'hard' if i % 2 else 'easy'} {i}", "x", "y") for i in range(50)]
    judging = JudgeSession(f"openai:m@{server.url}(concurrency=1)")
    assert sum(verdict.p is None for verdict in judging.ask(questions)) == 25  # asked again, 25 in a row are unreadable
    assert len(server.asked) == 50 + 3 * 25
    again = JudgeSession(f"openai:m@{server.url}")
    again.ask(questions)
    assert again.counts.asked == 0


def test_that_nothing_could_be_read_is_an_error(serve):
    judging = JudgeSession(f"openai:m@{serve(lambda body: '?').url}")
    judging.begin()
    judging.ask([Question("p", "x", "y"), Question("p", "same", "same")])
    with pytest.raises(JudgeError, match="None of the 1 answers of the judge openai:m@.* could be read"):
        judging.enforce_read()
    judging.begin()
    judging.enforce_read()  # nothing was asked


# --- fields that a server refuses ---


@pytest.mark.parametrize(
    ("refused", "wanted", "sent"),
    [
        (("temperature",), None, {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}),
        (("max_tokens",), None, {"temperature": 0, "logprobs": True, "top_logprobs": 20}),
        (
            ("max_tokens",),
            "max_completion_tokens",
            {"temperature": 0, "max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20},
        ),
        (("logprobs",), None, {"temperature": 0, "max_tokens": 1}),
        (("temperature", "max_tokens", "logprobs"), None, {}),
    ],
)
def test_a_field_that_is_refused_is_adapted_to_once(serve, refused, wanted, sent):
    server = serve(refusing(*refused, wanted=wanted))
    judging = JudgeSession(f"openai:m@{server.url}(concurrency=1)")
    judging.judge()
    assert [v.p for v in judging.ask([Question("p", "x", str(i)) for i in range(3)])] == [1.0] * 3
    assert len(server.asked) == 3 + len(refused)
    assert {name: value for name, value in server.asked[-1].items() if name not in ("model", "messages")} == sent
    assert all(any(field in said for said in judging.remarks) for field in refused)


def test_too_many_likeliest_tokens_are_asked_for_again_as_fewer(serve):
    def says(body):
        if body["top_logprobs"] > 5:
            return 400, {"error": {"message": "top_logprobs must be at most 5"}}, ()
        return "B", {"A": LN(0.4), "B": LN(0.6)}

    server = serve(says)
    assert ask(server).p == pytest.approx(0.6) and server.asked[-1]["top_logprobs"] == 5


def test_what_the_user_asked_for_by_name_is_not_left_out(serve):
    for options in ({"max_tokens": 7}, {"request": {"max_tokens": 7}}):
        server = serve(refusing("max_tokens"))
        with pytest.raises(JudgeError, match="HTTP 400: .*max_tokens"):
            ask(server, **options)
        assert len(server.asked) == 1
        server = serve(refusing("max_tokens", wanted="max_completion_tokens"))  # the same by another name
        assert ask(server, **options).p == 1.0 and server.asked[-1]["max_completion_tokens"] == 7


# --- usage and money ---


@pytest.mark.parametrize(
    "usage", [None, [], "many", {}, {"prompt_tokens": "12", "completion_tokens": None}, {"prompt_tokens": {}}]
)
def test_odd_usage_throws_no_answer_away_and_costs_are_estimated(serve, usage):
    server = serve(lambda body: (200, {"choices": [{"message": {"content": "B"}}], "usage": usage}, ()))
    judging = JudgeSession(f"openai:m@{server.url}(price_in=3.0, price_out=6.0, retries=0)")
    assert judging.ask([Question("p", "x", "y")])[0].p == 1.0 and len(server.asked) == 1
    sent = sum(len(message["content"]) + 30 for message in server.asked[0]["messages"])
    assert judging.counts.cost == pytest.approx((sent / 3 * 3.0 + 1 / 3 * 6.0) / 1e6)
    assert "does not report tokens" in " ".join(judging.remarks)


def test_a_budget_in_money_holds_without_usage(serve):
    server = serve(lambda body: (200, {"choices": [{"message": {"content": "B"}}]}, ()))
    spec = f"openai:m@{server.url}(price_in=1000000.0, price_out=0.0, concurrency=1)"
    one = get_judge(spec).estimate([Question("p0", "x", "y")])
    with pytest.raises(JudgeError, match="budget"):
        JudgeSession(spec, money=2.5 * one).ask([Question(f"p{i}", "x", "y") for i in range(9)])
    judging = JudgeSession(spec, money=2.5 * one)
    judging.ask([Question(f"p{i}", "x", "y") for i in range(2)])
    with pytest.raises(JudgeError, match="budget"):
        judging.ask([Question("p3", "x", "y")])
    assert len(server.asked) == 2


def test_an_answer_without_a_limit_has_a_price_before_it_is_asked(serve):
    spec = {f"openai:m@{serve(lambda body: 'B').url}": {"price_out": 1e6, "request": {"max_tokens": None}}}
    assert get_judge(spec).estimate([Question("p", "x", "y")]) == 1024


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_a_quota_that_is_spent_is_asked_once(serve, code):
    body = {"error": {"message": "You exceeded your current quota", "type": code, "code": code}}
    server = serve(lambda sent: (429, body, ()))
    with pytest.raises(JudgeError, match="exceeded your current quota"):
        JudgeSession(f"openai:m@{server.url}").ask([Question("p", "x", "y")])
    assert len(server.asked) == 1


@pytest.mark.parametrize(("answer", "code"), [("?", 1), ("B", 0)])
def test_the_exit_code_says_that_nothing_could_be_read(serve, tmp_path, monkeypatch, answer, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    rows = [{"prompt": "p1", "a": "x", "b": "y", "gold": 1}, {"prompt": "p2", "a": "x", "b": "z", "gold": 0}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    (tmp_path / "base.json").write_text('[{"instruction": "p1", "output": "x", "generator": "other"}]')
    (tmp_path / "said.json").write_text('[{"instruction": "p1", "output": "y", "generator": "mine"}]')
    judge = f"openai:m@{serve(lambda body: answer).url}"
    checked = CliRunner().invoke(app, ["judge-check", judge, "pairs.json"])
    assert checked.exit_code == code, checked.output
    command = ["eval", "said.json", "--suite", "alpaca_eval", "--judge", judge, "alpaca_eval.baseline=base.json"]
    for _ in range(2):  # also when it is started again, and the answers come from the file of verdicts
        found = CliRunner().invoke(app, command)
        assert found.exit_code == code, found.output
        assert ("None of the 2 answers of the judge" in found.output) == bool(code)
