"""Display: how the nouns show themselves, in a line of text and as a small table in notebooks - never an array.

And how words of files reach a terminal: as what they are, whatever they would have it do.
"""

import html
from collections.abc import Mapping
from typing import Any

# What a terminal obeys instead of showing: control characters but tab and line feed, and marks that turn the writing.
_ORDERS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_ORDERS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def inert(text: str) -> str:
    """Return a text with all that a terminal would obey written out as escapes."""
    return text.translate(_ORDERS)


def plain(text: str) -> str:
    """Return a message as Rich prints it: neither its markup nor the terminal's orders have an effect."""
    from rich.markup import escape  # not for who only asks for help

    return escape(inert(text))


class Shown:
    """What a noun inherits to be read at a prompt, in a notebook (`_repr_html_`) and in treescope.

    It says what it is in `_line`, and more of it in `_facts`: {name: value}, where a value may be a dict of its own.
    """

    def _line(self) -> str:
        """Return what stands between the brackets of the `repr`."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """Return what is worth a row: sizes, densities, provenance."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._line()})"

    def _repr_html_(self) -> str:
        return f"<p><b>{type(self).__name__}</b> {html.escape(self._line())}</p>{_table(self._facts())}"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import repr_lib  # only a notebook that draws with treescope calls this

        facts = {name.replace(" ", "_"): value for name, value in self._facts().items()}
        return repr_lib.render_object_constructor(type(self), facts, path, subtree_renderer)


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(str(name))}</th><td style='text-align:left'>"
        f"{_table(value) if isinstance(value, Mapping) else html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"
