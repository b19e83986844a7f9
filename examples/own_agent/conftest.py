"""Enables the test kit of goalstate."""

pytest_plugins = ["goalstate.testkit"]
