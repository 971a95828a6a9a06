"""The judge: is this output what its contract says, up to honest rounding?

`judge(got, want)` judges one tensor against a `Sums`, `Grid`, `Selection` or `Exact`; `hal.numerics.contracts.expect`
makes those for a whole call of a contract. docs/numerics.md explains the rule and how its constants were chosen.
"""

from hal.numerics.codes import Exact, Grid, judge_exact, judge_grid
from hal.numerics.expectation import Expectation, Part, Want, judge
from hal.numerics.precision import Precision, declared
from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.selection import Selection, judge_selection
from hal.numerics.sums import Sums, judge_sums
from hal.numerics.verdict import Verdict

__all__ = [
    "DEFAULT",
    "Exact",
    "Expectation",
    "Grid",
    "Part",
    "Precision",
    "Rules",
    "Selection",
    "Sums",
    "Verdict",
    "Want",
    "declared",
    "judge",
    "judge_exact",
    "judge_grid",
    "judge_selection",
    "judge_sums",
]
