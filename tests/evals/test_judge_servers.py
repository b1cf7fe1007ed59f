"""Judges behind servers of every kind, through `plo eval` as a user runs it: right verdicts, or a sentence with the remedy."""

import json
import logging
import math
import re

import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.tracking import Tracker

COUNT = 24  # questions; of three answers one loses, so that the rate is 2/3
PROMPT = """version: 1
labels: A B
answer: first_token
--- user
{prompt}

<reply_A>
{a}
</reply_A>

<reply_B>
{b}
</reply_B>
"""


def label(body):
    """The right answer: a fine reply is better than a decent one, and that is better than a poor one."""
    shown = body["messages"][-1]["content"]
    a, b = (re.search(f"<reply_{x}>\n(.*?)\n</reply_{x}>", shown, re.DOTALL)[1] for x in "AB")
    worth = ["poor", "decent", "fine"]
    return "AB"[worth.index(a.split()[0]) < worth.index(b.split()[0])]


def refusing(field, message):
    error = {"error": {"message": message, "type": "invalid_request_error", "param": field}}
    return lambda body: (400, error, ()) if field in body else label(body)


def null_at_first():
    seen = set()

    def says(body):
        asked = str(body["messages"])
        first = asked not in seen
        seen.add(asked)
        return None if first and len(seen) % 3 == 0 else label(body)

    return says


def likely(body):
    """A label with its log-probs, though the text says nothing."""
    return "?", {label(body): math.log(0.8), "AB".replace(label(body), ""): math.log(0.1)}


ANSWERED = {
    "fails 30%": ("helpful", lambda: label, {"failing": 0.3, "stall": 1.2}),
    "thinks": ("helpful", lambda: lambda body: f"<think>A? No, B.\nA!</think>\n\nOne is better.\n{label(body)}", {}),
    "thinks, then the label": ("label", lambda: lambda body: f"<think>A or B?</think>{label(body)}", {}),
    "content: null at first": ("helpful", null_at_first, {}),
    "refuses temperature": ("helpful", lambda: refusing("temperature", "'temperature' does not support 0, only 1"), {}),
    "refuses max_tokens": (
        "helpful",
        lambda: refusing("max_tokens", "'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
        {},
    ),
    "refuses logprobs": ("label", lambda: refusing("logprobs", "logprobs is not supported by this model"), {}),
    "log-probs": ("label", lambda: likely, {}),
}
GIVEN_UP = {
    "content: null": (
        "helpful",
        lambda body: None,
        r"the last one is empty\. .*needs room: openai:MODEL\(max_tokens=4096\)",
    ),
    "a thought without an end": (
        "label",
        lambda body: "<think>Well, A",
        r"needs room: openai:MODEL\(max_tokens=4096\)",
    ),
    "explains": ("label", lambda body: "I prefer A because", r"--template helpful"),
    "refuses another field": (
        "helpful",
        lambda body: (400, {"error": {"message": "unknown field 'model'"}}, ()),
        r"unknown field 'model'.*request=\{'FIELD': VALUE\}",
    ),
    "wrong key": ("helpful", lambda body: (401, {"error": {"message": "no"}}, ()), r"PLO_KEY_127_0_0_1"),
}


@pytest.fixture
def evaluate(tmp_path, monkeypatch, caplog, serve):
    """Run `plo eval` of a file of outputs with this server; return the exit code, the log and the finding."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    prompts = [f"\n\nHuman: Question {i}?\n\nAssistant:" for i in range(COUNT)]
    chosen = [f"{prompt} {'poor' if i % 3 else 'fine'} {i}" for i, prompt in enumerate(prompts)]
    rows = [{"chosen": text, "rejected": f"{prompt} bad"} for text, prompt in zip(chosen, prompts, strict=True)]
    (tmp_path / "hh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [{"prompt": prompt, "text": "decent", "generator": "mine"} for prompt in prompts]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, said)))
    (tmp_path / "label.txt").write_text(PROMPT)

    def run(template, says, **faults):
        server = serve(says, **faults)
        template = template if template == "helpful" else "label.txt"
        options = ["hh.path=hh.jsonl", "hh.against=[chosen]", f"hh.template={template}", "--store", "plo.db"]
        judge = f"openai:m@{server.url}(timeout=1)"
        done = CliRunner().invoke(app, ["eval", "said.jsonl", "--suite", "hh", "--judge", judge, *options])
        cells = Tracker(tmp_path / "plo.db").cells()
        return done, caplog.text + done.output, [found for cell in cells for found in cell.findings]

    return run


@pytest.mark.parametrize("kind", ANSWERED)
def test_the_verdicts_are_right(evaluate, kind):
    template, says, faults = ANSWERED[kind]
    done, log, found = evaluate(template, says(), **faults)
    assert done.exit_code == 0, log
    assert found[0].metrics["win_rate_chosen"] == pytest.approx(2 / 3)
    assert found[0].metrics["consistency_chosen"] == 1 and found[0].metrics["unreadable_chosen"] == 0
    if kind.startswith("refuses"):
        assert any("as its server requires" in note for note in found[0].about["notes"])


@pytest.mark.parametrize("kind", GIVEN_UP)
def test_or_a_sentence_names_the_remedy(evaluate, kind):
    template, says, sentence = GIVEN_UP[kind]
    done, log, found = evaluate(template, says)
    assert done.exit_code == 1 and not found
    assert re.search(sentence, log), log


def test_judge_check_says_what_the_server_requires(tmp_path, monkeypatch, caplog, serve):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    rows = [
        {"prompt": "Q?", "a": "decent", "b": f"{'poor' if i % 3 else 'fine'} {i}", "gold": int(i % 3 == 0)}
        for i in range(9)
    ]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    server = serve(refusing("temperature", "'temperature' does not support 0, only 1"))
    command = ["judge-check", f"openai:m@{server.url}", "gold.jsonl", "--template", "helpful", "--store", "plo.db"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "accuracy         1.000" in done.output, done.output
    note = "is asked without temperature, as its server requires."
    assert note in caplog.text
    (check,) = Tracker(tmp_path / "plo.db").judge_checks()
    assert check["card"][-1].endswith(note)
