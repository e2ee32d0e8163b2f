"""Runs the migrations with Alembic. Imported only where there is one to run: it takes 80 ms and 10 MiB."""

from pathlib import Path

from alembic import command
from alembic.config import Config


def configuration(database_path: Path) -> Config:
    """Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["database_path"] = database_path
    return config


def upgrade(database_path: Path, revision: str = "head") -> None:
    """Bring the database to `revision`, by default the newest."""
    command.upgrade(configuration(database_path), revision)
