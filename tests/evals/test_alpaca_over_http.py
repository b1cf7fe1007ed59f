"""A whole AlpacaEval run through `plo eval`, the model and its judge both the embedded model behind HTTP."""

import json
import os
import subprocess
import sys
import threading
import time
from functools import cache

import pytest

from plo.tracking import Tracker

INSTRUCTIONS = 100
IN_FLIGHT = 8  # requests that `server:` and `openai:` have under way at once


class Embedded:
    """The embedded model's answer to a request of the chat protocol: log-probs of the first token where asked, else text."""

    def __init__(self):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from plo.embedded import embedded_model

        self.torch, self.lock = torch, threading.Lock()
        self.model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(embedded_model())

    def __call__(self, body):
        with self.lock:
            return self.say(json.dumps(body, sort_keys=True))

    @cache  # noqa: B019  (the runs after the first would wait for the same answers)
    def say(self, request):
        body = json.loads(request)
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        if not body.get("logprobs"):
            self.torch.manual_seed(body["seed"])
            sampling = {"do_sample": True, "temperature": body["temperature"], "max_new_tokens": body["max_tokens"]}
            out = self.model.generate(**ids, **sampling)[0, ids["input_ids"].shape[1] :]
            return self.tokenizer.decode(out, skip_special_tokens=True)
        with self.torch.no_grad():
            last = self.model(**ids, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
        top = last.topk(body["top_logprobs"])
        found = {self.tokenizer.decode(t): p for t, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
        return next(iter(found)), found


@pytest.fixture(scope="module")
def embedded():
    return Embedded()


@pytest.mark.slow  # some three minutes
def test_killed_it_asks_for_what_is_missing_and_failures_change_nothing(embedded, serve, shared_data, tmp_path):
    steady, failing = serve(embedded), serve(embedded, failing=0.3, stall=12)

    def start(server, home):
        url, data = server.url, shared_data / "alpaca_eval"
        command = [sys.executable, "-m", "plo", "eval", f"server:embedded@{url}", f"alpaca_eval.data={data}"]
        command += [f"alpaca_eval.instructions={INSTRUCTIONS}", "alpaca_eval.max_new_tokens=32"]
        command += [
            "--suite",
            "alpaca_eval",
            "--judge",
            f"openai:embedded@{url}(timeout=10)",
            "--store",
            f"{tmp_path / home}.db",
        ]
        return subprocess.Popen(command, env=os.environ | {"PLO_HOME": str(tmp_path / home)})

    def kill(process, server, answered):
        while server.answered < answered:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        time.sleep(3)  # what is under way is answered to nobody

    kill(start(steady, "one"), steady, INSTRUCTIONS // 2)  # while the model answers
    kill(start(steady, "one"), steady, 2 * INSTRUCTIONS)  # while the judge does
    assert start(steady, "one").wait() == 0
    distinct = {json.dumps(body, sort_keys=True) for body in steady.asked}
    judged = sum(bool(body.get("logprobs")) for body in map(json.loads, distinct))
    assert len(distinct) - judged == INSTRUCTIONS and judged % 2 == 0 and judged > 1.9 * INSTRUCTIONS
    assert len(steady.asked) - len(distinct) <= 2 * IN_FLIGHT  # asked twice: at most what two kills cut off

    assert start(failing, "two").wait() == 0
    assert len(failing.failed) > 0.25 * len(failing.asked) and len(failing.asked) > len(distinct)
    one, two = (Tracker(tmp_path / f"{home}.db", create=False).cells()[0].findings[0] for home in ("one", "two"))
    assert one.items.equals(two.items) and len(one.items) == INSTRUCTIONS
    assert one.metrics == two.metrics and one.metrics["unreadable"] == 0 and 0 < one.metrics["win_rate"] < 1
