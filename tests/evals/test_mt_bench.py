"""MT-Bench on small files of its formats, with a judge whose grades are known."""

import json
import math

import pytest
from scripted import Scripted
from stub import StubSubject

from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.judges import JudgeSession, get_template
from plo.evals.judges.template import as_rating
from plo.evals.mt_bench import official_templates

# The slots of FastChat's judge_prompts.jsonl, in other words.
TALK = (
    "### User:\n{question_1}\n\n### Assistant A:\n{answer_1}\n\n### User:\n{question_2}\n\n### Assistant A:\n{answer_2}"
)
GIVEN = "### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}\n\n### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}"
PROMPTS = {
    "single-v1": "Q {question} A {answer} [[rating]]",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": f"<talk>\n{TALK}\n</talk>",
    "single-math-v1-multi-turn": f"<right>\n{GIVEN}\n</right>\n<talk>\n{TALK}\n</talk>",
    "pair-v2": "{question} {answer_a} {answer_b}",
}
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Why?", "And {then}?"], "reference": ["a", "b"]},
    {"question_id": 121, "category": "coding", "turns": ["Code.", "Faster."]},
    {"question_id": 131, "category": "extraction", "turns": ["List.", "Sort."]},
]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    """A folder like FastChat's fastchat/llm_judge."""
    lines(tmp_path / "data/mt_bench/question.jsonl", QUESTIONS)
    answers = [
        {
            "question_id": n,
            "answer_id": "x",
            "model_id": "gpt-4",
            "choices": [{"index": 0, "turns": [f"R{n}.1", f"R{n}.2"]}],
        }
        for n in (101, 121)
    ]
    lines(tmp_path / "data/mt_bench/reference_answer/gpt-4.jsonl", answers)
    rows = [{"name": name, "system_prompt": f"S {name}", "prompt_template": text} for name, text in PROMPTS.items()]
    lines(tmp_path / "data/judge_prompts.jsonl", rows)
    return tmp_path


class Grader(Scripted):
    """States the grade of a function of the question, read by the prompt `grade`."""

    def __init__(self, says, **attributes):
        template = get_template("grade")
        super().__init__(lambda q: template.read(says(q)), template=template, **attributes)


def run(judge, answer=lambda messages, k, t: f"answer to {messages[-1]['content']}", **options):
    subject = StubSubject(answer, chat=True)
    return get_model_evaluation("mt_bench", options)(subject, JudgeSession(judge)), subject


def test_two_turns_are_asked_and_graded_by_hand(data):
    grades = {
        "Write.": 8,
        "Again.": 4,
        "Why?": 10,
        "And {then}?": 1,
        "Code.": 5.5,
        "Faster.": 0,
        "List.": 2,
        "Sort.": 7,
    }
    judge = Grader(lambda q: f"Well. Rating: [[{grades[q.b.removeprefix('answer to ')]}]]")
    found, subject = run(judge, data=data)
    metrics = found.metrics
    # 0 is no grade from 1 to 10
    assert metrics["score"] == pytest.approx((8 + 4 + 10 + 1 + 5.5 + 2 + 7) / 7) and metrics["unreadable"] == 1 / 8
    assert metrics["score_turn_1"] == pytest.approx((8 + 10 + 5.5 + 2) / 4)
    assert metrics["score_turn_2"] == pytest.approx((4 + 1 + 7) / 3)
    assert metrics["score_writing"] == 6 and metrics["score_coding"] == 5.5
    assert found.items["prompt_id"].tolist() == ["81/1", "81/2", "101/1", "101/2", "121/1", "121/2", "131/1", "131/2"]
    assert found.items["score"].mean() == pytest.approx(metrics["score"])
    # writing at .7, the others greedily; the second turn holds the first answer
    drawn = [(settings["temperature"], [m[-1]["content"] for m in asked]) for asked, settings in subject.calls]
    assert drawn[:2] == [(0.0, ["Why?", "Code.", "List."]), (0.7, ["Write."])] and drawn[3] == (0.7, ["Again."])
    assert subject.calls[3][0][0] == [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": "answer to Write."},
        {"role": "user", "content": "Again."},
    ]
    assert found.notes[0] == "MT-Bench questions, judge scripted: 4 of 4 questions, two turns each."


def test_references_are_shown_for_reasoning_and_coding_alone(data):
    judge = Grader(lambda q: "[[5]]")
    run(judge, data=data)
    shown = {q.b: q for q in judge.asked}
    assert shown["answer to Write."].a == "" and shown["answer to Code."].a == "R121.1"
    assert shown["answer to And {then}?"].a.endswith("### User:\nAnd {then}?\n\n### Reference answer:\nR101.2")
    assert shown["answer to And {then}?"].prompt == (
        "Why?\n\n### Assistant A:\nanswer to Why?\n\n### User:\nAnd {then}?"
    )


def test_thoughts_do_not_reach_the_second_turn(data):
    judge = Grader(lambda q: "[[5]]")
    _, subject = run(judge, lambda messages, k, t: "<think>hm</think>so", data=data)
    assert subject.calls[3][0][0][1]["content"] == "so" and all(q.b == "so" for q in judge.asked)


def test_an_answer_equal_to_its_reference_and_an_empty_one_are_graded_too(data):
    """Of two equal answers a judge that compares is not asked; one that grades is."""
    judge = Grader(lambda q: "[[10]]" if q.b else "[[1]]")
    found, _ = run(judge, lambda messages, k, t: "R121.1" if messages[-1]["content"] == "Code." else "", data=data)
    assert found.metrics["score_turn_1"] == pytest.approx((10 + 1 + 1 + 1) / 4) and found.metrics["empty"] == 7 / 8


def test_the_official_prompts_show_what_fastchat_shows(data):
    made = official_templates(data)
    text = {
        "question_1": "q1 {b}",
        "answer_1": "a1",
        "question_2": "q2",
        "answer_2": "a2",
        "ref_answer_1": "r1",
        "ref_answer_2": "r2",
    }
    talk = "q1 {b}\n\n### Assistant A:\na1\n\n### User:\nq2"
    given = "### User:\nq1 {b}\n\n### Reference answer:\nr1\n\n### User:\nq2\n\n### Reference answer:\nr2"
    want = PROMPTS["single-math-v1-multi-turn"].format(**text)
    assert [m["content"] for m in made[2, True].fill(talk, given, "a2")] == ["S single-math-v1-multi-turn", want]
    assert made[2, False].fill(talk, "", "a2")[1]["content"] == PROMPTS["single-v1-multi-turn"].format(**text)
    assert made[1, True].fill("q", "r", "x")[1]["content"] == "Q q R r A x"
    assert made[1, False].fill("q", "", "x")[1]["content"] == "Q q A x [[rating]]"
    rows = (data / "data/judge_prompts.jsonl").read_text().replace("{answer_2}", "{other}")
    (data / "data/judge_prompts.jsonl").write_text(rows)
    with pytest.raises(EvaluationError, match=r"single-v1-multi-turn has no \{answer_2\}"):
        official_templates(data)


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("Rating: [[5]]", 5),
        ("[[7.5]] and [[2]]", 7.5),  # FastChat takes the first
        ("[3] or [[4]]", 4),
        ("Rating: [9]", 9),
        ("[[10]]", 10),
        ("[[11]]", None),
        ("5", None),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them(answer, rating):
    p = get_template("grade").read(answer)
    assert p is None if rating is None else math.isclose(as_rating(p), rating)


def test_faults_are_named(data, tmp_path):
    with pytest.raises(EvaluationError, match="needs a judge that grades one answer, and scripted compares two"):
        run(Scripted(lambda q: 0.5), data=data)
    with pytest.raises(
        EvaluationError, match=r"has no data/mt_bench/question.jsonl: put that file of the hub's space lmsys/mt-bench"
    ):
        run(Grader(lambda q: "[[5]]"), data=tmp_path / "none")
    lines(
        data / "data/mt_bench/reference_answer/gpt-4.jsonl", [{"question_id": 101, "choices": [{"turns": ["a", "b"]}]}]
    )
    with pytest.raises(EvaluationError, match="no reference answer to 1 questions, the first 121"):
        run(Grader(lambda q: "[[5]]"), data=data)
    lines(data / "data/mt_bench/question.jsonl", [{"question_id": 1, "category": "x", "turns": ["one"]}])
    with pytest.raises(EvaluationError, match="instead of two questions"):
        run(Grader(lambda q: "[[5]]"), data=data)
