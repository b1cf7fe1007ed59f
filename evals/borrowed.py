"""Names and texts of lm-eval and alpaca-eval that are not documented, checked when an evaluation first uses them."""

from functools import cache

from plo.borrowed import Library

LM_EVAL = Library("lm-eval", tried=("0.4.13",))
ALPACA_EVAL = Library("alpaca-eval", tried=("0.6.6",))
NO_METRIC = "not found in the evaluate library"  # in the log record of a metric that lm-eval leaves out


@cache
def check_lm_eval() -> None:
    """Check what `plo.evals.harness` and `plo.evals.harness_tasks` rely on.

    Raises:
        BorrowedError: a name is gone, or a text by which unsafe tasks and unknown metrics are recognised.
    """
    LM_EVAL.require("lm_eval.models.huggingface:HFLM", "tok_decode(tokens)")
    LM_EVAL.require("lm_eval.tasks:TaskManager", "load", "all_tasks", "task_index")
    LM_EVAL.require("lm_eval.api.registry", "metric_registry")
    LM_EVAL.require_text("lm_eval.api.registry", NO_METRIC)
    LM_EVAL.require_text("lm_eval.api.task", "self.UNSAFE_CODE = True")
    LM_EVAL.require_text("lm_eval.tasks._index", "yaml_path")


@cache
def check_alpaca_eval() -> None:
    """Check what `plo.evals.alpaca_official` relies on.

    Raises:
        BorrowedError: a name is gone, or the regression no longer reads its files where plo puts local ones in.
    """
    glm = "alpaca_eval.metrics.glm_winrate"
    ALPACA_EVAL.require("alpaca_eval.metrics", "get_winrate", "get_length_controlled_winrate", "glm_winrate")
    ALPACA_EVAL.require(glm, "hf_hub_download")
    ALPACA_EVAL.require_text(glm, "= hf_hub_download(")
    ALPACA_EVAL.require("alpaca_eval.utils", "prompt_to_chatml")
    ALPACA_EVAL.require("alpaca_eval.constants", "EVALUATORS_CONFIG_DIR")
