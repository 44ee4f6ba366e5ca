"""A line where a command is silent, and none where it is not."""

import io
import sys
import time

import pytest

from latentlab.heartbeat import show_heartbeat


def test_silence_is_broken_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with show_heartbeat(0.05):
        print("begins")
        time.sleep(0.5)
    shown = capsys.readouterr()
    assert shown.out.startswith("begins\n") and "at work" in shown.out
    assert shown.err == ""


def test_whoever_talks_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with show_heartbeat(5.0):
        for _ in range(5):
            print("word", file=sys.stderr)
            time.sleep(0.02)
    assert capsys.readouterr() == ("", "word\n" * 5)


def test_streams_are_given_back_after_a_failure() -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), show_heartbeat():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


class Closed(io.StringIO):
    """A pipe whose reader is gone."""

    tried = False

    def write(self, text: str) -> int:
        self.tried = True
        raise BrokenPipeError


def test_a_reader_that_is_gone_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in its thread would be a warning, which is an error in tests."""
    closed = Closed()
    monkeypatch.setattr(sys, "stdout", closed)
    with show_heartbeat(0.05):
        time.sleep(0.3)
    assert closed.tried
