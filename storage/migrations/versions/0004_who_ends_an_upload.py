"""Whether an upload ends with its length (tus), or only when its sender says so (RUFH)."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Uploads of before end with their length, as they did."""
    op.add_column("upload", sa.Column("awaits_end", sa.Boolean(), nullable=False, server_default=sa.false()))
