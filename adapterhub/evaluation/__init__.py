"""The weighing room: what is measured, and how."""

from adapterhub.evaluation._evaluate import TaskReport, evaluate
from adapterhub.evaluation._metrics import LOWER_IS_BETTER, MAIN_METRIC, score
from adapterhub.evaluation._rows import EvaluationRow, read_evaluation_rows

__all__ = [
    "LOWER_IS_BETTER",
    "MAIN_METRIC",
    "EvaluationRow",
    "TaskReport",
    "evaluate",
    "read_evaluation_rows",
    "score",
]
