"""Everything that `packhorse` loads, for the process that the tests fork it from."""

from server.lean import loading

with loading():
    import storage.migrations.upgrading  # noqa: F401 - and what else a first start needs
