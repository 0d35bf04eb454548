"""Show something in a notebook as it is best shown there, and elsewhere as plain text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import Any

_MARKED = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<b>[^*]+)\*\*|(?<![\w*])\*(?P<i>\w[^*]*)\*(?![\w*])"
)


@dataclass(frozen=True)
class Shown:
    """A text, and the same as HTML without a style sheet."""

    text: str
    html: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def inline(text: str) -> str:
    """Markdown of one line (code, bold, italics) as HTML."""

    def tagged(found: re.Match[str]) -> str:
        tag = str(found.lastgroup)
        return f"<{tag}>{found[tag]}</{tag}>"

    return _MARKED.sub(tagged, escape(text, quote=False))


def in_notebook() -> bool:
    """Whether this runs in IPython, a notebook's kernel or its terminal."""
    try:
        from IPython.core.interactiveshell import InteractiveShell
    except ImportError:
        return False
    return bool(InteractiveShell.initialized())


def show(what: Any) -> None:
    """Display `what`, which has `__str__` and `_repr_html_`."""
    if not in_notebook():
        print(what)
        return
    from IPython.display import display

    display({"text/plain": str(what), "text/html": what._repr_html_()}, raw=True)


def say(text: str) -> None:
    """Show a text, its Markdown as HTML in a notebook."""
    show(Shown(text, inline(text)))
