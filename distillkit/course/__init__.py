"""The course around the library: run levels, exercises, quizzes, and the care of notebooks.

What a chapter needs of it:

    from distillkit.course import headline, quiz, recorded, run_level

and an exercise:

    from distillkit.course import check, hint, solution

Neither brings torch along: the exercises load when the first one is checked.
"""

from distillkit.course.best_student_results import (
    best_student_table,
    best_student_verdicts,
    speakers,
)
from distillkit.course.checking import check, hint, progress, reset, solution
from distillkit.course.classifier_results import (
    clinc_so_far,
    intent_duels,
    intent_runs,
    repaired_runs,
    shares_of,
    teacher_entropy,
)
from distillkit.course.drift_results import drift_curves, drift_table, drift_verdicts
from distillkit.course.headlines import headline
from distillkit.course.inside_results import (
    distilbert_runs,
    distilbert_table,
    inside_curves,
    inside_gaps,
    inside_runs,
    inside_table,
    inside_verdicts,
)
from distillkit.course.levels import Level, machine_check, run_level
from distillkit.course.method_results import (
    method_curves,
    method_runs,
    methods_summary,
    methods_table,
    methods_verdicts,
    speaking_verdicts,
    tuning_table,
)
from distillkit.course.pruning_results import (
    pruning_runs,
    pruning_table,
    repair_runs,
    repair_table,
    repair_verdicts,
)
from distillkit.course.quizzes import quiz
from distillkit.course.results import (
    clinc_table,
    fair_fight,
    fair_table,
    intents_table,
    marks,
    overview,
    recorded,
    stages_table,
    students,
)

__all__ = [
    "Level",
    "best_student_table",
    "best_student_verdicts",
    "check",
    "clinc_so_far",
    "clinc_table",
    "distilbert_runs",
    "distilbert_table",
    "drift_curves",
    "drift_table",
    "drift_verdicts",
    "fair_fight",
    "fair_table",
    "headline",
    "hint",
    "inside_curves",
    "inside_gaps",
    "inside_runs",
    "inside_table",
    "inside_verdicts",
    "intent_duels",
    "intent_runs",
    "intents_table",
    "machine_check",
    "marks",
    "method_curves",
    "method_runs",
    "methods_summary",
    "methods_table",
    "methods_verdicts",
    "overview",
    "progress",
    "pruning_runs",
    "pruning_table",
    "quiz",
    "recorded",
    "repair_runs",
    "repair_table",
    "repair_verdicts",
    "repaired_runs",
    "reset",
    "run_level",
    "shares_of",
    "solution",
    "speakers",
    "speaking_verdicts",
    "stages_table",
    "students",
    "teacher_entropy",
    "tuning_table",
]
