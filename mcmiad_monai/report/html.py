"""Pages that stand alone: every value escaped, every script and style named by its digest."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from mcmiad_monai.errors import escaped

#: Says in a page who made it; pages without it are never removed.
MARK = '<meta name="generator" content="mcmiad report">'
#: NiiVue as it was published; ``vendor/niivue/README.md`` has version and licence.
NIIVUE = "vendor/niivue/niivue.umd.js"


class Html(str):
    """Text that is HTML already; any other text is escaped where it enters a page."""

    __slots__ = ()


@cache
def resource(name: str) -> str:
    """Text of a file of this package, e.g. ``"pages/base.css"``."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def text(value: Any) -> Html:
    """A value as HTML text or as an attribute in quotes; control characters become visible."""
    if isinstance(value, Html):
        return value
    return Html(escape(escaped(str(value)), quote=True))


def fill(template: str, **values: Any) -> Html:
    """Fill the ``$names`` of a template, each escaped unless it is `Html`.

    Raises
    ------
    KeyError
        If a name of the template has no value.
    """
    return Html(Template(template).substitute({key: text(value) for key, value in values.items()}))


def join(parts: Sequence[Html]) -> Html:
    """Pieces of HTML one after the other."""
    return Html("".join(parts))


def data_block(name: str, content: Any) -> Html:
    """Data for a script: JSON that cannot end its element, whatever text is in it.

    Parameters
    ----------
    name : str
        ``id`` of the element.
    content : JSON-able
        NaN and infinity are refused, which no browser reads.
    """
    packed = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        packed = packed.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{name}">{packed}</script>')


def document(
    *, title: str, body: Html, styles: Sequence[str], scripts: Sequence[str], data: Any
) -> str:
    """A whole page, which loads nothing.

    Its Content-Security-Policy lets run what is named by its digest here, and nothing else: no
    other script or style, no request, no form, no frame.

    Parameters
    ----------
    title : str
        For the browser's window.
    body : Html
    styles, scripts : sequence of str
        Files of this package.
    data : JSON-able
        What the scripts find under the name ``data``.
    """
    sheets, programs = [list(map(resource, names)) for names in (styles, scripts)]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_source, programs))}",
            f"style-src {' '.join(map(_source, sheets))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return fill(
        resource("pages/document.html"),
        policy=policy,
        mark=Html(MARK),
        title=title,
        styles=join([Html(f"<style>{sheet}</style>") for sheet in sheets]),
        body=body,
        data=data_block("data", data),
        scripts=join([Html(f"<script>{program}</script>") for program in programs]),
    )


def _source(content: str) -> str:
    """A script or style as a policy names it."""
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
