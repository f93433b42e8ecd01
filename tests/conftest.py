"""Fixtures for every test: the S3 servers."""

pytest_plugins = ["servers"]
