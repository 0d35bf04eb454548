"""The command line: `distillkit run · progress · levels · distill · chat`.

A sub-command is a row of COMMANDS: its name, the room behind it, and a sentence of help. The room
has `add_arguments(parser)` and `main(args)`, and is imported only when its command is chosen, so
`distillkit --help` needs none of them.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from distillkit import __version__
from distillkit.errors import UserError

COMMANDS = {
    "run": ("distillkit.course.run", "execute the chapters and show what they measured"),
    "progress": ("distillkit.course.checking", "show which exercises and quizzes you have done"),
    "levels": ("distillkit.course.levels", "show the run levels and check this machine"),
    "distill": ("distillkit.distill", "distil a teacher into a student on your conversations"),
    "chat": ("distillkit.talk", "talk to a model, yours or one of the shipped ones"),
}

MISTAKE = 2
INTERRUPTED = 130
NOBODY_READS = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; the exit status.

    0: done; 1: it ran and found failures; 2: something that the user can mend, told in one
    sentence; 130: interrupted by Ctrl-C; 141: nobody reads the output any more, as after `| head`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        args = build_parser(next(iter(arguments), None)).parse_args(arguments)
        return int(args.main(args) or 0)
    except UserError as mistake:
        return _say(str(mistake), MISTAKE)
    except KeyboardInterrupt:
        return _say("interrupted before it was done", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what is not flushed yet
        return NOBODY_READS
    except Exception as problem:
        if not _disk_is_full(problem):
            raise
        return _say("no space left on the disk: make room and run it again", MISTAKE)


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the arguments of the `chosen` sub-command."""
    parser = argparse.ArgumentParser(
        prog="distillkit", description="Make a dialogue language model small."
    )
    parser.add_argument("--version", action="version", version=f"distillkit {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (room_name, sentence) in COMMANDS.items():
        command = commands.add_parser(name, help=sentence, description=sentence.capitalize() + ".")
        if name == chosen:
            room = _load(name, room_name)
            room.add_arguments(command)
            command.set_defaults(main=room.main)
    return parser


def _load(command: str, room: str) -> ModuleType:
    try:
        return import_module(room)
    except ModuleNotFoundError as missing:
        if (missing.name or "distillkit").split(".")[0] == "distillkit":
            raise
        raise UserError(
            f"`distillkit {command}` needs the package {missing.name!r}, which is not installed:"
            " install the course with its extras (pip install -e '.[lab]' in its folder)"
        ) from missing


def _disk_is_full(problem: Exception) -> bool:
    """Python says so with an error number, the writers of safetensors and parquet in words only."""
    number = getattr(problem, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(problem)


def _say(sentence: str, status: int) -> int:
    print(f"distillkit: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
