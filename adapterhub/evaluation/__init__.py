"""The weighing room: what is measured, and how."""

from adapterhub.evaluation._bootstrap import Interval, Pair, Statistic, interval, pair
from adapterhub.evaluation._curves import (
    CostRatio,
    SizePoint,
    StepsToTarget,
    TrainTestGap,
    cost_ratios,
    final_values,
    size_curve,
    steps_to_target,
    train_test_gaps,
)
from adapterhub.evaluation._directions import Better, better_of, ceiling_of
from adapterhub.evaluation._drift import AdapterUsage, Drift, UsageReport, category_drift, number_drift, usage_report
from adapterhub.evaluation._evaluate import TaskReport, evaluate
from adapterhub.evaluation._gain import Gain, gain, saturated
from adapterhub.evaluation._ledger import Influence, Ledger, influences, ledger
from adapterhub.evaluation._metrics import LOWER_IS_BETTER, MAIN_METRIC, score
from adapterhub.evaluation._multitask import AverageGain, DeltaM, Rank, average_gain, delta_m, mean_rank
from adapterhub.evaluation._outcome import Outcome, Trace
from adapterhub.evaluation._records import Record, read_records, write_records
from adapterhub.evaluation._row_scores import row_scores
from adapterhub.evaluation._rows import EvaluationRow, aligned_tags, read_evaluation_rows
from adapterhub.evaluation._sheets import Sheet, as_markdown, section_sheets, size_sheet, steps_sheet
from adapterhub.evaluation._suggest import Suggestion, suggest_tasks
from adapterhub.evaluation._summary import BASELINE, REFERENCE, MethodSummary, Section, summarise
from adapterhub.evaluation._table import Mean, Measure, OutcomeTable

__all__ = [
    "BASELINE",
    "LOWER_IS_BETTER",
    "MAIN_METRIC",
    "REFERENCE",
    "AdapterUsage",
    "AverageGain",
    "Better",
    "CostRatio",
    "DeltaM",
    "Drift",
    "EvaluationRow",
    "Gain",
    "Influence",
    "Interval",
    "Ledger",
    "Mean",
    "Measure",
    "MethodSummary",
    "Outcome",
    "OutcomeTable",
    "Pair",
    "Rank",
    "Record",
    "Section",
    "Sheet",
    "SizePoint",
    "Statistic",
    "StepsToTarget",
    "Suggestion",
    "TaskReport",
    "Trace",
    "TrainTestGap",
    "UsageReport",
    "aligned_tags",
    "as_markdown",
    "average_gain",
    "better_of",
    "category_drift",
    "ceiling_of",
    "cost_ratios",
    "delta_m",
    "evaluate",
    "final_values",
    "gain",
    "influences",
    "interval",
    "ledger",
    "mean_rank",
    "number_drift",
    "pair",
    "read_evaluation_rows",
    "read_records",
    "row_scores",
    "saturated",
    "score",
    "section_sheets",
    "size_curve",
    "size_sheet",
    "steps_sheet",
    "steps_to_target",
    "suggest_tasks",
    "summarise",
    "train_test_gaps",
    "usage_report",
    "write_records",
]
