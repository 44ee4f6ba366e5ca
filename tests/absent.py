"""Packages that are made absent for a test."""

import importlib
import sys

import pytest


class WithoutTensorFlow:
    """A finder of modules that finds all that the given one does, except TensorFlow."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)


def block_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes importing TensorFlow fail as it does where it is not installed."""
    importlib.import_module("six")  # adds a finder when it is first imported, which must outlive this
    monkeypatch.setattr(sys, "meta_path", [WithoutTensorFlow(finder) for finder in sys.meta_path])
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
