"""How many test examples a certificate takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from lissome.core.errors import BadInput
from lissome.core.statistics.paired import GAMMA_SHARE, drop_p_value, probability, region
from lissome.core.statistics.tango import gained_rate

LIMIT = 100_000_000
"""Beyond this many examples the answer is "no practical number"."""


def examples_needed(discordance_rate: float, drop: float, margin: float, confidence: float, power: float = 0.8) -> int:
    """Test examples that certify "drop < margin" with probability `power`, when the true drop is `drop` and the two models disagree
    in correctness on a share `discordance_rate` (lost + gained) of examples. All fractions.

    When they never disagree the answer is exact: the least n at which zero lost and zero gained certify, a rule of three (299 for one
    point at 95 %). Otherwise it is that or, if larger, the n at which Tango's test has the power, its probability summed over the trinomial;
    the exact test needs the same within a few per cent. Raises BadInput where no number of examples suffices.
    """
    if not 0 <= discordance_rate <= 1 or abs(drop) > discordance_rate + 1e-12:
        raise BadInput(f"a drop of {drop} with {discordance_rate} of examples discordant is impossible", expected="|drop| <= discordance_rate <= 1")
    if not 0.5 < confidence < 1 or not 0 < power < 1:
        raise BadInput(f"confidence {confidence} or power {power} is out of range", expected="0.5 < confidence < 1, 0 < power < 1")
    if drop >= margin or margin >= 1:
        raise BadInput(f"no number of examples certifies a drop below {margin:g} when the true drop is {drop:g}", do="allow a larger drop")
    floor = _without_discordance(margin, confidence) if margin > 0 else 1
    if discordance_rate == 0:
        return floor
    lost, gained = (discordance_rate + drop) / 2, max(discordance_rate - drop, 0.0) / 2
    normal = NormalDist()
    at_margin = 2 * float(gained_rate(lost, gained, 1, margin)) + margin - margin**2
    reach = normal.inv_cdf(confidence) * math.sqrt(at_margin) + normal.inv_cdf(power) * math.sqrt(max(discordance_rate - drop**2, 0.0))
    guess = max((max(reach, 0.1) / (margin - drop)) ** 2, 2.0)
    if guess > LIMIT:
        raise BadInput(f"more than {LIMIT:,} examples would be needed", do="allow a larger drop")

    def enough(n: int) -> bool:
        # Power climbs in a sawtooth; a little further on it must hold as well.
        return all(_power(many, lost, gained, margin, confidence) >= power for many in (n, math.ceil(1.01 * n), math.ceil(1.02 * n)))

    return max(floor, _smallest(enough, math.ceil(guess)))


def _smallest(enough: Callable[[int], bool], guess: int) -> int:
    """Smallest n that is enough, near `guess`, within 0.5 %."""
    low, high = 0, guess
    while not enough(high):
        low, high = high, math.ceil(1.2 * high) + 1
    if low == 0:
        low = high
        while low > 1 and enough(low):
            low, high = int(low / 1.2), low
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=64)
def _without_discordance(margin: float, confidence: float) -> int:
    """Least n at which no discordant example at all certifies the margin."""
    miss = 1 - confidence
    n = max(1, math.floor(math.log(miss) / math.log1p(-margin)))
    if n > LIMIT:
        raise BadInput(f"more than {LIMIT:,} examples would be needed", do="allow a larger drop")
    low, high = n - 1, n
    while drop_p_value(0, 0, high, margin, confidence) > miss:
        low, high = high, high + max(1, high // 100)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop_p_value(0, 0, middle, margin, confidence) <= miss else (middle, high)
    return high


def _power(n: int, lost: float, gained: float, margin: float, confidence: float) -> float:
    """Probability that Tango's test at the level the exact test has left after its nuisance interval certifies the margin."""
    z = NormalDist().inv_cdf(1 - (1 - confidence) * (1 - GAMMA_SHARE))
    certifying = region(-z, n, margin, gained, gained)
    return float(probability(certifying, np.array([lost]), np.array([gained]))[0])
