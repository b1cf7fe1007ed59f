"""Judges of pairs of answers: protocol, registry, versioned prompts, cache of verdicts, and cards of their quality."""

from plo.evals.judges.cache import VerdictCache
from plo.evals.judges.calls import JudgeUsage
from plo.evals.judges.card import JudgeCard, ValueWithInterval, make_judge_card
from plo.evals.judges.gold import register_gold
from plo.evals.judges.judge import (
    JUDGES,
    Judge,
    JudgeError,
    Question,
    TransientError,
    Verdict,
    get_judge,
    register_judge,
)
from plo.evals.judges.rows import read_gold
from plo.evals.judges.session import JudgeSession
from plo.evals.judges.template import Template, TemplateError, get_template

JUDGES.register("openai", "plo.evals.judges.openai:OpenAI")
JUDGES.register("hf", "plo.evals.judges.hf:HuggingFace")
JUDGES.register("pinned", "plo.evals.judges.pinned:Pinned")
JUDGES.register("reward", "plo.evals.judges.reward:Reward")
JUDGES.register("gold", "plo.evals.judges.gold:Gold")
JUDGES.register("replay", "plo.evals.judges.replay:Replay")

__all__ = [
    "JUDGES",
    "Judge",
    "JudgeCard",
    "JudgeError",
    "JudgeSession",
    "JudgeUsage",
    "Question",
    "Template",
    "TemplateError",
    "TransientError",
    "ValueWithInterval",
    "Verdict",
    "VerdictCache",
    "get_judge",
    "get_template",
    "make_judge_card",
    "read_gold",
    "register_gold",
    "register_judge",
]
