"""Raw inputs for `run`, as a user gives them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lissome.core.errors import BadInput


def raw_inputs(given: Sequence[str], file: Path | None) -> list[str]:
    """Inputs typed and inputs from a file (one a line, empty lines left out; "-" is standard input). Raises BadInput for none."""
    found = list(given)
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the inputs cannot be read: {error}", where=str(file), expected="UTF-8 text, one input a line") from error
        found += [line for line in text.splitlines() if line.strip()]
    if not found:
        raise BadInput("there is nothing to predict.", do='give --input "a text", or --file FILE with one input a line')
    return found
