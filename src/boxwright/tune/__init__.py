"""The fastest file, runtime and threads within budgets, and the Pareto front; docs/tune.md.

>>> from boxwright.tune import Budgets, Sweep, tune
"""

from boxwright.tune.driver import RESULT_FILE, tune
from boxwright.tune.records import Budgets, Candidate, Combination, Drop, Sweep, TuneResult
from boxwright.tune.request import Request, check_request

__all__ = [
    "RESULT_FILE",
    "Budgets",
    "Candidate",
    "Combination",
    "Drop",
    "Request",
    "Sweep",
    "TuneResult",
    "check_request",
    "tune",
]
