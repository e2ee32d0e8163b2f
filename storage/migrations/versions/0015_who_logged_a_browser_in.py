"""A code, and the browser that it logs in, tell who made the code: they end with him."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Those of before were made by nobody who is known: a browser of before ends with its token, as it did."""
    for table in ("login_code", "browser"):
        op.add_column(table, sa.Column("maker", sa.String(64)))
    op.add_column("login_code", sa.Column("maker_expires_at", sa.String(24)))
