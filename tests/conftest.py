"""Fixtures that any test may ask for."""

pytest_plugins = ["tests.fixtures.databases", "tests.fixtures.disks", "tests.fixtures.s3"]
