"""Judges of pairs of answers: one protocol, a registry, prompts with versions."""

from plo.evals.judges.judge import JUDGES, Judge, JudgeError, Question, Verdict, get_judge, register_judge
from plo.evals.judges.judging import Judging
from plo.evals.judges.template import Template, TemplateError, get_template

__all__ = [
    "JUDGES",
    "Judge",
    "JudgeError",
    "Judging",
    "Question",
    "Template",
    "TemplateError",
    "Verdict",
    "get_judge",
    "get_template",
    "register_judge",
]
