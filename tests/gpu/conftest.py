"""What the tests of a GPU tell at their end: the device, and how far its own precision moves each result."""

import jax
import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = {
        f"  {name}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
    }
    if lines:
        terminalreporter.section(f"{jax.devices()[0].device_kind}: distance from float64")
        for line in sorted(lines):
            terminalreporter.write_line(line)
