"""Shares as users write them."""

from __future__ import annotations

from lissome.core.errors import BadInput


def share(text: str, option: str) -> float:
    """ "98%" or "0.98" as 0.98. Raises BadInput for what is not between 0 and 1."""
    digits = text.strip()
    try:
        value = float(digits.removesuffix("%")) / (100 if digits.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise BadInput(f'{option}: "{text}" is no share', expected='more than 0 and less than 1, such as "98%" or 0.98')
    return value
