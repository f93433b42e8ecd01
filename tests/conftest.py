"""For every test: the S3 servers, and no silent skips where nothing may be missing."""

import os

import pytest

pytest_plugins = ["servers", "running"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """With REMASTER_TEST_NO_SKIPS a skipped test is a failed one, but for data that is not ours."""
    report = yield
    ours = "shared" not in str(report.longrepr)
    if report.skipped and ours and os.environ.get("REMASTER_TEST_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
