"""Risk control without assumptions on the model: p-values for "the mean loss exceeds alpha", and fixed-sequence testing over a knob.

S. Bates, A. Angelopoulos, L. Lei, J. Malik, M. Jordan, "Distribution-free, risk-controlling prediction sets", Journal of the ACM 68 (2021);
A. Angelopoulos, S. Bates, E. Candes, M. Jordan, L. Lei, "Learn then Test", arXiv 2110.01052 (2021).
Losses must lie in [0, 1] and be independent draws; nothing else is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import cdf


def hoeffding_bentkus_p_value(mean_loss: float, n: int, alpha: float) -> float:
    """Valid p-value of H0 "the true mean loss is above alpha" from the mean of n losses in [0, 1].

    The smaller of Hoeffding's exp(-n kl(min(mean, alpha) || alpha)) and Bentkus's e P(Bin(n, alpha) <= ceil(n mean)) (Bates et al. 2021, section 3).
    """
    _check_alpha(alpha, "alpha")
    if n < 1 or not 0 <= mean_loss <= 1:
        raise BadInput(f"a mean loss of {mean_loss} over {n} examples is out of range", expected="0 <= mean loss <= 1, n >= 1")
    mean = min(mean_loss, alpha)
    divergence = (mean * math.log(mean / alpha) if mean > 0 else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    # The 1e-9 keeps a whole number of losses whole after rounding.
    bentkus = math.e * cdf(math.ceil(n * mean_loss - 1e-9), n, alpha)
    return min(1.0, math.exp(-n * divergence), bentkus)


def binomial_p_value(failures: int, n: int, alpha: float) -> float:
    """Exact p-value of H0 "the failure rate is above alpha": P(Bin(n, alpha) <= failures). For 0/1 losses, always below Hoeffding-Bentkus."""
    _check_alpha(alpha, "alpha")
    if n < 1 or not 0 <= failures <= n:
        raise BadInput(f"{failures} failures cannot come from {n} examples", expected="0 <= failures <= n, n >= 1")
    return cdf(int(failures), int(n), alpha)


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """How many hypotheses, in the given order, are rejected before the first p-value above delta.

    The order must be fixed without the data the p-values come from, safest first. The chance of any false rejection is then at most delta with no
    correction for their number (Angelopoulos et al. 2021, section 2.2).
    """
    _check_alpha(delta, "delta")
    accepted = 0
    for p_value in p_values:
        if not p_value <= delta:  # a NaN stops as well
            break
        accepted += 1
    return accepted


def calibrate(losses_by_knob: ArrayLike, alpha: float, delta: float) -> int | None:
    """Index of the boldest knob setting whose risk is certified, or None when not even the first is.

    losses_by_knob: [knobs, n] losses in [0, 1] on calibration examples, settings ordered from safe to bold before these losses were seen.
    With probability at least 1 - delta the true risk at the returned setting is at most alpha, on data like the calibration data. 0/1 losses get
    the exact binomial p-value, others Hoeffding-Bentkus. Choose on these examples only; report on others.
    """
    losses = np.asarray(losses_by_knob, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise BadInput(f"losses of shape {losses.shape} cannot calibrate a knob", expected="[knobs, examples], at least one example")
    if not np.all((losses >= 0) & (losses <= 1)):
        raise BadInput("some losses are outside [0, 1] or not numbers", expected="losses between 0 and 1", do="clip or scale the loss")
    n = losses.shape[1]
    # Two-valued or not is asked of all settings at once: asking per setting would let the data choose its own test.
    binary = bool(np.all((losses == 0) | (losses == 1)))
    totals = losses.sum(axis=1)
    p_values = (binomial_p_value(round(total), n, alpha) if binary else hoeffding_bentkus_p_value(min(total / n, 1.0), n, alpha) for total in totals)
    accepted = fixed_sequence(p_values, delta)
    return accepted - 1 if accepted else None


def _check_alpha(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise BadInput(f"{name} = {value} is out of range", expected="a fraction between 0 and 1")
