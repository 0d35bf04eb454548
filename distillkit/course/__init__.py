"""The course around the library: run levels, executing the chapters, stamping the notebooks.

What a chapter needs of it:

    from distillkit.course import headline, recorded, run_level
"""

from distillkit.course.headlines import headline
from distillkit.course.levels import Level, machine_check, run_level
from distillkit.course.results import (
    fair_fight,
    fair_table,
    marks,
    overview,
    recorded,
    stages_table,
    students,
)

__all__ = [
    "Level",
    "fair_fight",
    "fair_table",
    "headline",
    "machine_check",
    "marks",
    "overview",
    "recorded",
    "run_level",
    "stages_table",
    "students",
]
