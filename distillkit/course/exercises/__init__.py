"""The exercises: one definition each, in the modules `chapter_NN*.py` beside this file.

To write one (chapter_02.py has one of each kind to look at):

1. In `chapter_NN.py`, define the oracle, the mutants and the cases, and add an `Exercise` to the
   module's tuple `EXERCISES`. A module is found by its name; nothing else lists it. One of more
   than 300 lines is split: `chapter_02_divergences.py` beside `chapter_02.py`.
2. In `solutions/NN_*.ipynb`, write the statement under a heading `## 2.3` (title and box are filled
   in from the definition), the cell to solve, and a cell `check("2.3", the_function)`. What the
   learner writes stands between `# BEGIN SOLUTION` and `# END SOLUTION`. In its place the exercise
   gets `raise NotImplementedError`; for assignments at the left margin, `name = ...`; for an
   exercise to mend, the source of `given` (in `broken/chapter_NN.py`, as the learner gets it).
3. `python -m distillkit.course.building` writes exercises/, `python -m distillkit.course.matrix`
   says what happens to solutions, stubs and mutants (add "2.3" for one exercise alone), and
   `make stamp` renews the README.

The engine calls the function of the learner with the arguments of each `Case`, copied; compares
with the `oracle` (loops over nested lists); then tries the `properties`. A wrong answer is named
when **all** cases, and the properties, come out as those of one `Mutant`. To predict, the answer
is a number, some numbers, a word out of `choices` or a list of all of them; `oracle()` returns it.

An answer that is done on seed 0 meets cases of another seed, drawn anew at each check, so cases
must decide under *every* seed: what chance alone would tell apart, a case tells apart by
construction (as that of 15 visits in 0.3 does). An answer may not call the functions of `library`,
nor those of `distillkit.losses` and of these exercises (`watching`); how long it may take stands in
`bench`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from distillkit.course.exercises.definition import Exercise
from distillkit.course.words import SAID
from distillkit.errors import UserError


def exercise(number: str) -> Exercise:
    """The exercise "2.3", loaded with its chapter alone; UserError when there is none."""
    chapter = str(number).split(".")[0].zfill(2)
    for each in _defined(name for name in _modules() if name.startswith(f"chapter_{chapter}")):
        if each.number == number:
            return each
    known = ", ".join(each.number for each in all_exercises())
    raise UserError(SAID["unknown"].format(number=number, known=known))


def all_exercises() -> list[Exercise]:
    """Every exercise, in order."""
    return _defined(_modules())


def _modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("chapter_"))


def _defined(modules: Iterable[str]) -> list[Exercise]:
    found = [each for name in modules for each in import_module(f"{__name__}.{name}").EXERCISES]
    return sorted(found, key=lambda each: tuple(map(int, each.number.split("."))))
