"""All fixtures come from the test kit."""

pytest_plugins = ["testkit.fixtures"]
