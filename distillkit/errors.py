"""The one exception of distillkit that is meant to be read by a person."""


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one sentence: what was found, what was expected, what to do. The command line
    prints it without a traceback and exits with status 2.
    """
