"""Display: how the nouns show themselves, in a line of text and as a small table in notebooks - never an array."""

import html
from collections.abc import Mapping
from typing import Any


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
