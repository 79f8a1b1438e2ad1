"""Write formulas into the pages as MathML, which browsers draw themselves: no scripts, no fonts, no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def as_mathml(formula: str, display: str) -> str:
    """Turn a formula into a ``<math>`` element.

    Args:
        formula: LaTeX without dollars.
        display: ``inline`` or ``block``.

    Raises:
        ExtensionError: If it cannot be read, so that the build fails instead of showing half a formula.
    """
    try:
        converted: str = convert(formula, display=display)
    except Exception as error:  # its errors have no common class
        raise ExtensionError(f"The formula {formula!r} cannot be read ({type(error).__name__}: {error}).") from error
    if "<mi>&</mi>" in converted:
        raise ExtensionError(f"The formula {formula!r} aligns at '&'. Write one formula a line instead.")
    return converted


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(as_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{as_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
