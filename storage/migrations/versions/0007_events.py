"""Who reads the audit chain on, and which studies wait to be told stable."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The webhooks' place in the chain is one of several."""
    op.rename_table("webhook_cursor", "chain_cursor")
    op.create_table(
        "study_watch",
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("last_image_at", sa.String(24), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("site", "study_instance_uid", name=op.f("pk_study_watch")),
    )
    op.create_index("ix_study_watch_told", "study_watch", ["told", "last_image_at"])
