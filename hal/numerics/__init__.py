"""The judge: is this output what its contract says, up to honest rounding?"""

from hal.numerics.codes import Exact, Grid, judge_exact, judge_grid
from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.selection import Selection, judge_selection
from hal.numerics.sums import Sums, judge_sums
from hal.numerics.verdict import Verdict

__all__ = [
    "DEFAULT",
    "Exact",
    "Grid",
    "Rules",
    "Selection",
    "Sums",
    "Verdict",
    "judge_exact",
    "judge_grid",
    "judge_selection",
    "judge_sums",
]
