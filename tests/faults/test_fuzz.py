"""Every reader of files, given some damaged ones; `python -m tests.faults.fuzz` gives them more."""

import pytest

from tests.faults import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_only_user_errors_come_out(name: str) -> None:
    inputs = 100 if "eras" not in name else 12  # HDF5 is read in a process of its own
    refused = fuzz.fuzz(name, inputs, seed=1)
    never = name in ("metrics.jsonl", "JPEG of CelebA")  # what they cannot read they pass over, or tell otherwise
    assert refused == 0 if never else 0 < refused <= inputs
