"""How far, how fast, how long still: a live bar on a terminal, a line every ten seconds in a log, or silence."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_STYLES = ("auto", "bar", "lines", "none")
_INTERVAL = 10.0  # seconds between two lines


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
    def rate(self) -> float:
        """Units a second so far; 0 before the first step."""
        return self.completed / self.seconds if self.completed and self.seconds > 0 else 0.0

    def __str__(self) -> str:
        amount = f"{self.description}: {self.completed:,.0f}/{self.total:,.0f} {self.unit}"
        if not self.rate:
            return amount
        left = max(self.total - self.completed, 0) / self.rate
        return f"{amount}, {_number(self.rate)} {self.unit}/s" + (f", {_clock(left)} left" if left else "")


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
        self._open = 0
        self._last = time.monotonic()

    @contextlib.contextmanager
    def bar(self, description: str, total: float, unit: str) -> Iterator[Bar]:
        """Show one bar while the block runs."""
        if self.style == "bar":
            with self._task(description, total, unit) as show:
                yield Bar(description, total, unit, show)
            return
        bar = Bar(description, total, unit, self._maybe_print if self.style == "lines" else lambda bar: None)
        yield bar
        if self.style == "lines":
            self._print(bar)

    @contextlib.contextmanager
    def _task(self, description: str, total: float, unit: str) -> Iterator[Callable[[Bar], None]]:
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                _Amount(),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._live.start()
        live = self._live
        task: TaskID = live.add_task(description, total=total, unit=unit)
        self._open += 1
        try:
            yield lambda bar: live.update(task, completed=bar.completed)
        finally:
            self._open -= 1
            if self._open:
                live.remove_task(task)
            else:
                live.stop()
                self._live = None

    def _maybe_print(self, bar: Bar) -> None:
        if time.monotonic() - self._last >= _INTERVAL:
            self._print(bar)

    def _print(self, bar: Bar) -> None:
        self._last = time.monotonic()
        self._console.print(str(bar), highlight=False, soft_wrap=True, markup=False)


class _Amount(ProgressColumn):
    """Amount done and rate, in the unit of the work."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        rate = f" {_number(task.speed)} {unit}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} {unit}{rate}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
