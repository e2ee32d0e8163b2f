"""How far the audit tells of an upload's bytes: what a crash left untold is found by it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Uploads of before count as told of up to what is known to be on the medium."""
    op.add_column("upload", sa.Column("audited_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE upload SET audited_bytes = offset_bytes")
