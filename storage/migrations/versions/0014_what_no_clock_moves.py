"""Readings in the order of moments that no clock moves; whether an upload names a blob is found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Readings of before have no moment: none of them counts for who asks from now on, and a re-send answers them."""
    op.add_column("blob", sa.Column("read_moment", sa.String(64)))
    op.add_column("blob", sa.Column("verified_moment", sa.String(64)))
    op.add_column("readback_wait", sa.Column("asked_moment", sa.String(64)))
    op.create_index("ix_upload_blob", "upload", ["site", "blob_sha256"],
                    sqlite_where=sa.text("blob_sha256 IS NOT NULL"))
