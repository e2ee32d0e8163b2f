"""One file a database: how a unit of work is run on it."""
