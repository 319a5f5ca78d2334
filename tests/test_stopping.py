"""A signal that ends a process is not lost, wherever it arrives."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from rigfit.stopping import Stopped, stops_cleanly


class Interrupted:
    """Gets SIGTERM while it is destroyed; Python drops what a destructor raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        list(map(str, range(100)))


class Unwell:
    def __del__(self) -> None:
        raise ValueError("of its own")


def drop_and_wait() -> None:
    with stops_cleanly():
        Interrupted()
        threading.Event().wait(20)
        pytest.fail("the stop was lost")


def drop_and_end() -> None:
    with stops_cleanly():
        Interrupted()


@pytest.mark.parametrize("work", [drop_and_wait, drop_and_end])
def test_a_stop_that_arrives_in_a_destructor_is_not_lost(
    work: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped) as caught:
        work()
    assert caught.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "Exception ignored" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_else_a_destructor_raises_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException | None] = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: told.append(dropped.exc_value))
    with stops_cleanly():
        Unwell()
    assert [str(error) for error in told] == ["of its own"]
