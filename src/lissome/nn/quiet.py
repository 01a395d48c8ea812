"""transformers without what it prints."""

from __future__ import annotations

from typing import Any


def quietly(work: Any) -> Any:
    """Run a transformers call without its progress bars and load reports, which belong to no one here."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return work()
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
