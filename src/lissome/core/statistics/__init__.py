"""The statistics behind every verdict, in numpy alone.

certify_drop answers whether a candidate's score fell by less than a margin, on the same examples as the original's. `paired` holds the exact test for
0/1 scores, `tango` its fast approximate twin, `reference` its slow obvious one, `bootstrap` the test for real-valued scores, `resample` the interval of
figures that are made from sums, `planning` how many examples a certificate takes, `intervals` medians, quantiles, ratios and proportions, `bounds` risk
control over a knob (Learn then Test), `independence` whether two groupings have to do with one another, `softmax` probabilities of
scores.
Every interval is tested by simulation to cover what it says.
"""

from lissome.core.statistics.bootstrap import BootstrapDrop, bootstrap_drop
from lissome.core.statistics.bounds import binomial_p_value, calibrate, fixed_sequence, hoeffding_bentkus_p_value
from lissome.core.statistics.certify import DropTest, certify_drop, more_examples
from lissome.core.statistics.independence import Dependence, dependence, dependences, mutual_information
from lissome.core.statistics.intervals import Interval, achieved_confidence, median_interval, proportion_interval, quantile_interval, ratio_interval
from lissome.core.statistics.paired import DropInterval, drop_interval, drop_p_value, drop_upper_bound
from lissome.core.statistics.planning import examples_needed
from lissome.core.statistics.resample import paired_difference
from lissome.core.statistics.softmax import log_softmax
from lissome.core.statistics.tango import asymptotic_upper_bound, score_statistic

__all__ = [
    "BootstrapDrop",
    "Dependence",
    "DropInterval",
    "DropTest",
    "Interval",
    "achieved_confidence",
    "asymptotic_upper_bound",
    "binomial_p_value",
    "bootstrap_drop",
    "calibrate",
    "certify_drop",
    "dependence",
    "dependences",
    "drop_interval",
    "drop_p_value",
    "drop_upper_bound",
    "examples_needed",
    "fixed_sequence",
    "hoeffding_bentkus_p_value",
    "log_softmax",
    "median_interval",
    "more_examples",
    "mutual_information",
    "paired_difference",
    "proportion_interval",
    "quantile_interval",
    "ratio_interval",
    "score_statistic",
]
