"""Silence what libraries report at length."""

import logging
import warnings


def silence_libraries() -> None:
    """Silence the progress bars and messages of transformers and MLflow, and warnings of what will change in libraries."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
