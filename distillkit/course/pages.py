"""Pages to read: an executed notebook as one HTML file that needs no network.

nbconvert's own pages fetch MathJax and other scripts when they are opened. Here formulas become
MathML, which browsers draw by themselves, and no script is fetched. A formula with a number,
`\\tag{2.4}`, has it at its right, and the address `#eq-2.4`.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

_TEMPLATE = """\
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""

_TAG = re.compile(r"\\tag\{([^{}]*)\}")
_FUNCTION = re.compile(r"(<mi>(?:log|exp)</mi>)(?!<mo)")  # log p, and log(p)
_NUMBERED = """\
<div id="eq-{number}" style="display: flex; align-items: center">
<div style="flex: 1; overflow-x: auto">{formula}</div><div>({number})</div></div>
"""


def page(notebook: NotebookNode, name: str) -> str:
    """The HTML of a notebook, whole in itself."""
    exporter = _Pages(raw_template=_TEMPLATE)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    return str(body)


class _Pages(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown to HTML, with formulas in MathML."""
        return str(MarkdownWithMath(renderer=_Formulas(escape=False)).render(source))


class _Formulas(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        """A formula in a line of text."""
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        """A formula that stands alone, with its number."""
        number = _TAG.search(body)
        if number is None:
            return _mathml(body, "block")
        formula = _mathml(_TAG.sub("", body), "block")
        return _NUMBERED.format(number=number[1], formula=formula)


def _mathml(formula: str, display: str) -> str:
    # HTML knows the element by its name, and nbconvert mangles names with a namespace in headings.
    mathml = str(convert(formula, xmlns="", display=display)).replace(' xmlns=""', "")
    return _FUNCTION.sub(r'\1<mspace width="0.167em" />', mathml)
