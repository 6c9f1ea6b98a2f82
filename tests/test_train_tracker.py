"""Trackers: told once when they fail, and never in the way of a training."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lingregions import train


@pytest.fixture
def notes() -> list[str]:
    return []


def test_no_tracker(tmp_path: Path, notes: list[str]) -> None:
    tracker = train.track("none", tmp_path, "x", {}, notes.append)
    tracker.log(1, loss=2.0)
    tracker.close()
    with pytest.raises(ValueError, match="must be one of none, tensorboard, wandb"):
        train.track("comet", tmp_path, "x", {})


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setitem(sys.modules, f"{kind}.summary", None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {kind}, or choose 'none'"):
        train.track(kind, tmp_path, "x", {})


class Down:
    """A tracker's library whose server goes away after the first figure."""

    def __init__(self, *words: Any, **named: Any) -> None:
        self.seen: list[Any] = []

    def init(self, **named: Any) -> "Down":
        return self

    def finish(self) -> None:
        pass

    def log(self, scalars: dict[str, float], step: int) -> None:
        if self.seen:
            raise ConnectionError("no route to host")
        self.seen.append((step, scalars))


def test_a_tracker_that_goes_down_is_told_once_and_stops_nothing(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Down()
    monkeypatch.setitem(sys.modules, "wandb", library)
    tracker = train.track("wandb", tmp_path, "x", {}, notes.append)
    for step in range(3):
        tracker.log(step, loss=1.0)
    tracker.close()
    assert library.seen == [(0, {"loss": 1.0})]
    assert len(notes) == 1
    assert "no route to host" in notes[0]


def test_a_tracker_that_does_not_start_is_told(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**named: Any) -> None:
        raise ConnectionError("no key")

    library = Down()
    monkeypatch.setattr(library, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", library)
    train.track("wandb", tmp_path, "x", {}, notes.append).log(1, loss=1.0)
    assert len(notes) == 1
    assert "no key" in notes[0]
