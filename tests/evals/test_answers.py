"""What a model thought is no part of its answer; empty, null and truncated answers are reported with their shares."""

import json

import numpy as np
import pandas as pd
import pytest
from stub import StubSubject

from plo.evals import get_model_evaluation
from plo.evals.answers import answer_notes, extract_answers, split_thought
from plo.evals.diversity import diversity
from plo.evals.judges import Judge, JudgeSession, Verdict
from plo.subjects import SubjectError
from plo.subjects.outputs import Outputs
from plo.subjects.server import Server


@pytest.mark.parametrize(
    ("text", "answer", "thought", "unended"),
    [
        ("<think>7 x 8</think>\n\nIt is 56.", "It is 56.", True, False),
        (" \n<think>a</think> <think>b</think>c", "c", True, False),
        ("the template began this</think>yes", "yes", True, False),
        ("<think>and on and on", "", True, True),
        ("<think></think>", "", True, False),
        ("  no thought ", "  no thought ", False, False),
        ("The tag <think> begins, </think> ends it.", "The tag <think> begins, </think> ends it.", False, False),
        ("<think>x</think>The tag </think> ends it.", "The tag </think> ends it.", True, False),
        ("", "", False, False),
    ],
)
def test_thoughts_at_the_beginning_are_cut(text, answer, thought, unended):
    found = split_thought(text)
    assert (found.text, found.thought, found.open) == (answer, thought, unended)
    assert split_thought(text, None).text == text


def test_other_marks_and_a_prompt_that_begins_the_thought():
    assert split_thought("[THINK]a[/THINK]b", "[/THINK]").text == "b"
    assert split_thought("analysis<|final|>b", "<|final|>").text == "b"
    assert split_thought("never said", "<|final|>").text == "never said"
    assert split_thought("no end", begun=True).open and split_thought("a</think>b", begun=True).text == "b"
    frame = pd.DataFrame({"prompt": ["user: x <think>\n", "user: x"], "text": ["on and on", "on and on"]})
    assert extract_answers(frame)["open"].tolist() == [1, 0] and extract_answers(frame)["truncated"].isna().all()


def test_shares_by_hand():
    texts = ["<think>a</think>b", "<think>a", " ", "c"]
    drawn = pd.DataFrame({"prompt": "p", "text": texts, "finished": [True, False, True, True]})
    found = extract_answers(drawn.assign(null=[False, False, True, False], adapted=[["without seed"], [], [], []]))
    assert found["text"].tolist() == ["b", "", " ", "c"]
    assert found["empty"].tolist() == [0, 1, 1, 0] and found["truncated"].tolist() == [0, 1, 0, 0]
    thoughts, empty, truncated, adapted = answer_notes("hh: m", found)
    assert thoughts.startswith("hh: m: 2 of 4 answers begin with a thought") and "1 of them end inside it" in thoughts
    assert empty == "hh: m: 2 of 4 (50.0%) answers are empty, 1 of them `content: null`."
    assert truncated == "hh: m: 1 of 4 (25.0%) answers were cut at the token limit."
    assert adapted == "hh: m: drawn without seed, as the server requires."
    assert answer_notes("hh: m", extract_answers(drawn.iloc[3:])) == []


class Shown(Judge):
    """Prefers the longer answer, and keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def judge(self, questions):
        self.seen += [text for q in questions for text in (q.a, q.b)]
        return [Verdict(float(len(q.b) > len(q.a))) for q in questions]


@pytest.fixture
def hh_file(tmp_path):
    rows = [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: good", "rejected": f"\n\nHuman: q{i}\n\nAssistant: bad"}
        for i in range(4)
    ]
    path = tmp_path / "hh.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def alpaca_file(tmp_path):
    rows = [{"instruction": f"q{i}", "output": "good", "generator": "other"} for i in range(4)]
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(rows))
    return path


def thinking(prompt, sample, temperature):
    """One of the four answers ends in its thought."""
    return "<think>a very long thought" if "q2" in str(prompt) else "<think>a very long thought</think>ok"


@pytest.mark.parametrize("name", ["hh", "alpaca_eval"])
def test_the_judge_is_not_shown_what_was_thought(name, hh_file, alpaca_file):
    if name == "alpaca_eval":
        pytest.importorskip("alpaca_eval")
    given = {"path": hh_file} if name == "hh" else {"baseline": alpaca_file}
    judge = Shown()
    found = get_model_evaluation(name, given)(StubSubject(thinking, chat=True), JudgeSession(judge))
    assert set(judge.seen) == {"ok", "", "good"} and found.metrics["length"] == 1.5
    assert found.metrics["empty"] == 0.25 and found.items["empty"].sum() == 1 and found.metrics["truncated"] == 0
    assert "4 of 4 answers begin with a thought" in " ".join(
        found.notes
    ) and "1 of 4 (25.0%) answers are empty" in " ".join(found.notes)
    judge = Shown()
    get_model_evaluation(name, {**given, "think_end_token": None})(
        StubSubject(thinking, chat=True), JudgeSession(judge)
    )
    assert all("thought" in text for text in set(judge.seen) - {"good"})


def test_of_the_reference_too(hh_file):
    plain, judge = StubSubject(lambda *_: "plain"), Shown()
    found = get_model_evaluation("hh", {"path": hh_file, "against": ["reference"]})(
        StubSubject(lambda *_: "other", reference=StubSubject(thinking)), JudgeSession(judge)
    )
    assert set(judge.seen) == {"other", "ok", ""} and found.metrics["empty_reference"] == 0.25
    assert found.metrics["empty"] == 0 and plain.calls == []


def test_diversity_is_of_the_answers(hh_file, monkeypatch):
    monkeypatch.setattr("plo.evals.diversity.embed", lambda texts: np.eye(len(texts)))
    subject = StubSubject(lambda message, k, t: f"<think>{k}</think>same words")
    found = diversity(subject, path=hh_file, prompts=4, samples=2)
    assert found.metrics["length"] == 10 and found.metrics["distinct_1"] == 0.5
    assert "8 of 8 answers begin with a thought" in " ".join(found.notes)


def test_a_file_of_outputs_does_not_say_where_it_was_cut(tmp_path):
    (tmp_path / "said.json").write_text('[{"prompt": "p", "text": "<think>a</think>x"}]')
    found = extract_answers(Outputs(tmp_path / "said.json").sample(["p"]))
    assert found["text"].tolist() == ["x"] and found["truncated"].isna().all() and len(answer_notes("m", found)) == 1


# --- served models ---

CHAT = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]


@pytest.fixture
def subject(serve, tmp_path, monkeypatch):
    """Makes a served subject that answers by a function of the body."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path))

    def make(says, **arguments):
        server = serve(says)
        return Server(f"server:m@{server.url}", 0, workers=1, **arguments), server

    return make


def choices(content, finish="stop", **more):
    return 200, {"choices": [{"message": {"content": content}, "finish_reason": finish}], **more}, ()


def test_null_is_not_an_empty_answer_in_silence(subject):
    says = lambda body: choices(None if "q1" in str(body) else [{"type": "text", "text": "x"}], "length", usage="odd")  # noqa: E731
    served, server = subject(says)
    for _ in range(2):  # drawn, and from disk
        found = extract_answers(served.sample(CHAT))
        assert found["text"].tolist() == ["x", "", "x", "x"] and found["truncated"].tolist() == [1] * 4
        assert "1 of 4 (25.0%) answers are empty, 1 of them `content: null`" in answer_notes("m", found)[0]
    assert len(server.asked) == 4


def test_a_prompt_that_is_refused_spoils_no_other(subject):
    too_long = 400, {"error": {"message": "This model's maximum context length is 9 tokens."}}, ()
    served, server = subject(lambda body: too_long if "q1" in str(body) else choices("x"))
    found = extract_answers(served.sample(CHAT))
    assert found["text"].tolist() == ["x", "", "x", "x"] and found["truncated"].sum() == 0
    assert "1 of 4 (25.0%) prompts were refused by the server" in " ".join(answer_notes("m", found))
    server.says = lambda body: "longer"  # the server was started anew, with more room
    assert served.sample(CHAT)["text"].tolist() == ["x", "longer", "x", "x"] and len(server.asked) == 5
    server.says = lambda body: too_long
    with pytest.raises(SubjectError, match="refuses every prompt, the first with: .*maximum context length"):
        served.sample([[{"role": "user", "content": "another"}]])


@pytest.mark.parametrize(
    ("refused", "wanted", "said"),
    [
        ("temperature", None, "drawn without temperature"),
        ("max_tokens", "max_completion_tokens", "drawn with max_completion_tokens instead of max_tokens"),
        ("seed", None, "drawn without seed"),
    ],
)
def test_a_served_model_that_refuses_a_field(subject, refused, wanted, said):
    def says(body):
        if refused in body:
            return 400, {"error": {"message": f"'{refused}' is not supported. Use '{wanted}'.", "param": refused}}, ()
        return "x"

    served, server = subject(says)
    found = extract_answers(served.sample(CHAT, temperature=0.7, max_new_tokens=9))
    assert found["text"].tolist() == ["x"] * 4 and len(server.asked) == 5
    sent = server.asked[-1]
    assert refused not in sent and (wanted is None or sent[wanted] == 9)
    assert said in " ".join(answer_notes("m", found))
    again = extract_answers(served.sample(CHAT, temperature=0.7, max_new_tokens=9))
    assert len(server.asked) == 5 and said in " ".join(answer_notes("m", again))  # what is on disk says so too


def test_a_served_model_without_credit_is_asked_once(subject):
    served, server = subject(lambda body: (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, ()))
    with pytest.raises(SubjectError, match="HTTP 429: .*no credit"):
        served.sample(CHAT[:1])
    assert len(server.asked) == 1


def test_rate_limits_are_waited_for(subject):
    first = [(429, {"error": {"message": "later"}}, [("retry-after-ms", "10")])] * 3
    served, server = subject(lambda body: first.pop() if first else "x")
    assert served.sample(CHAT[:1])["text"].tolist() == ["x"] and len(server.asked) == 4


def test_a_key_that_a_served_model_echoes_is_not_its_answer(subject, monkeypatch):
    monkeypatch.setenv("PLO_KEY_127_0_0_1", "sk-0123456789")
    served, server = subject(lambda body: "my key is sk-0123456789")
    assert served.sample(CHAT[:1])["text"].tolist() == ["my key is [PLO_KEY_127_0_0_1]"]
    server.says = lambda body: (403, {"error": "sk-0123456789"}, ())
    with pytest.raises(SubjectError, match=r"\[PLO_KEY_127_0_0_1\]"):
        served.sample(CHAT[1:2])


def test_a_message_without_content_is_null_and_not_asked_again(subject):
    """Servers leave `content` out, or say null, where all tokens went into the thought."""
    served, server = subject(lambda body: (200, {"choices": [{"message": {"role": "assistant"}}]}, ()))
    assert extract_answers(served.sample(CHAT))["empty"].tolist() == [1] * 4
    assert len(server.asked) == 4
