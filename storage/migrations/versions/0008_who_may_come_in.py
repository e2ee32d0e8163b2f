"""Who may come in: narrow scopes and last use of tokens, one-time codes, browsers that are logged in."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _login(table: str, secret: str, end: str) -> None:
    op.create_table(
        table,
        sa.Column(secret, sa.String(64), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.String(24), nullable=False),
        sa.Column("expires_at", sa.String(24), nullable=False),
        sa.Column(end, sa.String(24)),
        sa.PrimaryKeyConstraint(secret, name=f"pk_{table}"),
    )


def upgrade() -> None:
    """Tokens of before have no narrower scope, no maker, and no known use."""
    for name, length in (("radiology_order_id", 64), ("created_by_id", 64)):
        op.add_column("token", sa.Column(name, sa.String(length)))
    op.add_column("token", sa.Column("numeric_ids", sa.Text(), nullable=False, server_default=""))
    op.add_column("token", sa.Column("maker", sa.String(64)))
    op.add_column("token", sa.Column("last_used_at", sa.String(24)))
    op.create_index("ix_token_maker", "token", ["maker"])
    _login("login_code", "code_sha256", "used_at")
    _login("browser", "cookie_sha256", "ended_at")
