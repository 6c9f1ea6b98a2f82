"""How far, how fast, how long still, of a piece of work and of the run: live bars on a terminal, else lines, or none.

In a log each step ends with one line, and between them stand lines ever further apart: every ten seconds at first, then
whenever a twentieth of the time so far has passed, so that a day fills two or three screens. No line stands twice. In
a notebook the last line is shown, and the others are folded below it.
"""

import contextlib
import html
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_STYLES = ("auto", "bar", "lines", "none")
_INTERVAL = 10.0  # seconds between two lines, at least
_SHARE = 0.05  # of the time so far, between two lines
_TOLD = 0.05  # of the work; before it the time left in all would be that of compiling
_Update = Callable[[float, str], None]


class Bar:
    """One piece of work with a known amount: `advance` by what is done."""

    def __init__(self, description: str, total: float, unit: str, show: Callable[["Bar"], None]) -> None:
        """Start the clock; `show` is called after every step."""
        self.description, self.total, self.unit, self._show = description, total, unit, show
        self.completed = 0.0
        self._start = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        """Add `amount` units of finished work."""
        self.completed += amount
        self._show(self)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def _amount(self) -> str:
        """How far, how fast and how long still."""
        said = f"{self.completed:,.0f}/{self.total:,.0f} {self.unit}"
        if not self.completed or self.seconds <= 0:
            return said
        rate = self.completed / self.seconds
        left = max(self.total - self.completed, 0) / rate
        return f"{said}, {_number(rate)} {self.unit}/s" + (f", {_clock(left)} left" if left else "")

    def __str__(self) -> str:
        return f"{self.description}: {self._amount}"


class _Whole:
    """A run as a whole: its steps, how much of their work is done, and how long the rest takes at the rate so far."""

    def __init__(self, sizes: Sequence[float], parts: Sequence[float], show: Callable[["_Whole"], None]) -> None:
        """Start the clock; `parts` of the steps (0 to 1) were done before, `show` is called when more is."""
        self._sizes, self._parts, self._show = sizes, list(parts), show
        self._before, self._start = self._done, time.monotonic()

    def reach(self, place: int, part: float) -> None:
        """Say that a part of a step is done."""
        self._parts[place] = max(self._parts[place], min(part, 1.0))
        self._show(self)

    @property
    def finished(self) -> int:
        """How many steps are finished."""
        return sum(part == 1 for part in self._parts)

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        return self._done / sum(self._sizes) if sum(self._sizes) else self.finished / len(self._parts)

    @property
    def _done(self) -> float:
        return sum(size * part for size, part in zip(self._sizes, self._parts, strict=True))

    def __str__(self) -> str:
        said, total, gained = (
            f"{self.finished} of {len(self._parts)} steps",
            sum(self._sizes),
            self._done - self._before,
        )
        if not total or not gained or self.finished == len(self._parts):
            return said
        if gained < _TOLD * total:
            return f"{said}, {self.share:.0%} of the work"
        left = (total - self._done) * (time.monotonic() - self._start) / gained
        return f"{said}, {self.share:.0%} of the work, about {_clock(left)} left in all"


class Display:
    """Where bars are shown; bars may be nested, they then stand below each other."""

    def __init__(self, style: str = "auto", console: Console | None = None) -> None:
        """Choose the style: "bar", "lines", "none", or "auto" (bar on a terminal, else lines)."""
        if style not in _STYLES:
            raise ValueError(f"progress is one of {', '.join(_STYLES)}, not {style!r}")
        self._console = console or Console(stderr=True)
        if style == "auto":
            style = "bar" if self._console.is_terminal else "lines"
        self.style = style
        self._live: Progress | None = None
        self._whole: _Whole | None = None
        self._place = self._depth = 0  # of the step that is performed; of the bar in other bars
        self._start = self._last = time.monotonic()
        self._folded: list[str] = []  # the lines of a notebook
        self._handle: Any = None

    @contextlib.contextmanager
    def whole(self, sizes: Sequence[float], parts: Sequence[float]) -> Iterator[None]:
        """Show a run as a whole while the block performs its steps.

        Args:
          sizes: the work of each step, in any unit; all 0 where it is not known.
          parts: what was done of each step before, 0 to 1.
        """
        with self._task("in all", 1.0) as update:
            self._whole = _Whole(sizes, parts, lambda whole: update(whole.share, str(whole)))
            if self._whole.finished:
                self._print(f"{self._whole.finished} of {len(sizes)} steps were finished before")
            try:
                yield
            finally:
                self._whole = None

    @contextlib.contextmanager
    def step(self, place: int, name: str) -> Iterator[None]:
        """Show one step of the whole while the block performs it, and say when it is finished."""
        assert self._whole is not None
        begin, before, self._place = time.monotonic(), self._whole.finished, place
        yield
        self._whole.reach(place, 1.0)
        if self._whole.finished > before:
            self._print(f"{name}: done in {_clock(time.monotonic() - begin)}; {self._whole}")

    @contextlib.contextmanager
    def bar(self, description: str, total: float, unit: str) -> Iterator[Bar]:
        """Show one bar while the block runs."""
        self._depth += 1
        outermost = self._depth == 1
        with self._task(description, total) as update:

            def show(bar: Bar) -> None:
                if self._whole is not None and outermost and total:
                    self._whole.reach(self._place, min(bar.completed / total, 0.999))  # done is for the step to say
                update(bar.completed, bar._amount)
                self._maybe_print(bar)

            try:
                yield Bar(description, total, unit, show)
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _task(self, description: str, total: float) -> Iterator[_Update]:
        """Show a line with a bar on a terminal, the last one that closes ends the live display; elsewhere nothing."""
        if self.style != "bar":
            yield lambda completed, said: None
            return
        if opened := self._live is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
            self._live = Progress(*columns, console=self._console)
            self._live.start()
        live = self._live
        task: TaskID = live.add_task(description, total=total, said="")
        try:
            yield lambda completed, said: live.update(task, completed=completed, said=said)
        finally:
            if opened:
                live.stop()
                self._live = None
            else:
                live.remove_task(task)

    def _maybe_print(self, bar: Bar) -> None:
        now = time.monotonic()
        if self.style == "lines" and now - self._last >= max(_INTERVAL, _SHARE * (now - self._start)):
            self._print(f"{bar}; {self._whole}" if self._whole else str(bar))

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        if self._console.is_jupyter and self.style == "lines":
            self._fold(line)
        elif self.style != "none":
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _fold(self, line: str) -> None:
        """Show the last line in a notebook, the others folded below it."""
        from IPython.display import HTML, display

        self._folded.append(line)
        lines = html.escape("\n".join(self._folded))
        page = HTML(f"<details><summary>{html.escape(line)}</summary><pre>{lines}</pre></details>")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
