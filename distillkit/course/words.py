"""What the exercises' engine says, in one table: a translation changes this and no code.

What belongs to one exercise (title, hints, the sentence about a mistake) stands in its definition.
"""

SAID = {
    # states
    "done": "Done",
    "not yet": "Not yet",
    "not started": "Not started",
    "used the library": "Used the library",
    # kinds
    "write": "write it",
    "predict": "predict it",
    "mend": "mend it",
    "box": "{kind} · difficulty {dots} · {minutes} minutes",
    # verdicts
    "stub": 'The cell still holds its stub. Fill it in, run it, and check again; hint("{number}") '
    "gives you a start.",
    "as given": "It still gives what the broken code gave. Find a fault, mend it, and check again; "
    'hint("{number}") tells you where to look.',
    "done because": "{cases} cases come out right.",
    "done and one": "{cases} cases come out right, and one property holds: what must be so for any "
    "input.",
    "done and more": "{cases} cases come out right, and {properties} properties hold: what must be "
    "so for any input.",
    "done case": "That is right.",
    "library": "Your function calls the course's own `{name}`. From the next chapter on you are "
    "free to use it. Here, write it yourself, without that call: it does not count yet.",
    "mistake": "{sentence}",
    "not shown": 'No known mistake gives this. Try a small case by hand, or ask hint("{number}").',
    "closer": "No known mistake gives these numbers. Compare yours with the target below, or ask "
    'hint("{number}").',
    "seen": "You are in good company: {seen}.",
    "time": "Your function was not done after {seconds:g} seconds, and was stopped. Is there a "
    "loop that never ends, or is it very slow?",
    "time at": "Your function gives the right numbers, but for “{what}” it was not done after "
    "{seconds:g} seconds, and was stopped. Is there a loop that never ends, or is it very slow?",
    "slow": "It is right, and slow: a call takes about {seconds:.1g} seconds, so not all of the "
    "further cases were tried. Tensors in the place of loops would be quicker.",
    "drawn": "These cases were drawn anew; to see the same once more, give the check "
    "`seed={seed}`.",
    "replaced": "Your function replaced {names}, for everybody who uses it. The check has put it "
    "back; give yours another name.",
    "complex": "Your result is made of complex numbers; expected are real ones. Was the root of a "
    "negative number taken, or does a `.real` at the end miss?",
    "left": "Your function ends the program ({error}). Return the result instead.",
    "stuck": "Your function was not done after {seconds:g} seconds, and cannot be stopped from "
    "here. Restart the kernel before you go on.",
    "beyond us": "What you gave cannot be compared with the target ({why}). Expected is what the "
    "statement asks for: a number, a word, or an ordinary tensor.",
    "raised": "With {case}, your function raised {error}.",
    "raised at": "With {case}, line {line} of your function raised {error}.",
    "recursion": "Your function calls itself without an end (RecursionError). Is its own name used "
    "where another function was meant?",
    "none": "Your function returns None. Is the `return` missing?",
    "type": "Your function returns a {found}; expected {expected}.",
    "shape": "With {case}, your result has shape {found}; expected {expected}.",
    "missing": "Missing: {missing}.",
    "too many": "Too many: {extra}.",
    "length": "With {case}, your result has {found} parts; expected {expected}.",
    "part": "{case}, in part {part} of {count}",
    "nan": "With {case}, your result has NaN or infinite values where the target is finite.",
    "half": "Your result is in {dtype}, which keeps three digits at most. Compute in float32.",
    "changed": "Your function changes its argument `{name}` in place; whoever called it still "
    "needs it. Work on a copy, or without the trailing underscore and without `+=`.",
    "arguments": "Your function cannot be called with the arguments {names}: {error}.",
    "printed": "Your function printed this (the check holds it back): {text}",
    "inside": "the line with check stands inside your function; put it below, at the left margin",
    "not a function": "Give check the function itself, without calling it: "
    'check("{number}", {name}).',
    "not an answer": "This question wants an answer, not a function: {expected}.",
    "answer type": "Your answer ({found}) has not the form that is asked for: {expected}.",
    "unknown names": "There is no {names} in the question. Asked for is {expected}.",
    "numbers wanted": "one number",
    "several wanted": "{count} numbers",
    "choice wanted": "one of {choices}",
    "order wanted": "a list that holds each of {choices} once, in your order",
    "wrong number": "Your {yours} is not near enough, and no known mistake gives it. Work it out, "
    'or ask hint("{number}").',
    "wrong numbers": "Not all of these numbers are near enough, and no known mistake gives them. "
    'Work them out, or ask hint("{number}").',
    "wrong order": "This is not the order, and none of the known mistakes. Predict again, or ask "
    'hint("{number}").',
    "wrong word": "This is not the right one, and none of the known mistakes. Predict again, or "
    'ask hint("{number}").',
    "a tensor": "a tensor of shape {shape}",
    "some numbers": "a list of {count} numbers, or a tensor of shape ({count},)",
    "a number": "a number",
    "a text": "a text",
    "a tuple": "{count} values",
    # pictures
    "yours": "yours",
    "target": "target",
    "with": "With {case}:",
    "cut": "(the first {rows} × {columns} of {shape}; ✗ marks what differs)",
    "cut inside": "(rows {top} to {bottom}, columns {left} to {right} of {shape}, counted from "
    "0; ✗ marks what differs)",
    "marked": "(✗ marks what differs)",
    # hints and solutions
    "hint": "Hint {number} of {count}: {text}",
    "no more hints": 'That was the last hint. solution("{number}") shows one way.',
    "hints left": '{count} hints are unread: hint("{number}") gives the next. Ask '
    'solution("{number}") once more and you see it anyway.',
    "solution": "One way to solve {number}:",
    "no solutions": "The solutions are not beside this notebook: find them in the course's "
    "repository, under solutions/.",
    "unknown": "There is no exercise {number!r}: there are {known}.",
    "no quiz": "There is no quiz {chapter!r}: there are {known}.",
    # quizzes
    "quiz": "Think first, then unfold.",
    "quiz how": 'Or answer all at once, one letter each: quiz("{chapter}", "{letters}").',
    "answers wanted": "Give {count} letters, one for each question, such as "
    'quiz("{chapter}", "{letters}").',
    "score": "{right} of {count} right.",
    # progress
    "progress": "{done} of {count} exercises done",
    "quizzes": "quiz {right}/{count}",
    "hints taken": "{count} hints",
    "one hint": "1 hint",
    "seen solution": "solution seen",
    "kept in": "kept in {path}",
    "forgotten": "Forgotten: {what}.",
    "everything": "all exercises and quizzes",
    "set aside": "The file with your progress could not be read ({why}). It is now {path}; a new "
    "one begins.",
    "not kept": "Your progress cannot be kept in {path} ({why}), so it lasts as long as this "
    "session, or until that is mended. DISTILLKIT_HOME may name a folder of yours.",
    "no home": "you have no folder of your own",
    "no such user": "there is no user of the name {user}",
}
