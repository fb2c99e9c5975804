"""Figures of the campaign, shown at its end; here, where the process that hands out the tests sees it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def figure(record_property) -> Callable[[str, str], None]:
    """figure(what, told): a line of the campaign's table."""
    return lambda what, told: record_property(f"faults: {what}", told)


def pytest_terminal_summary(terminalreporter):
    """The table."""
    lines = [
        (key.removeprefix("faults: "), told)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, told in report.user_properties
        if key.startswith("faults: ")
    ]
    if lines:
        terminalreporter.section("faults")
        for what, told in lines:
            terminalreporter.write_line(f"{what:60} {told}")
