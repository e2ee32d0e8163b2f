"""Open alarms are found without a look at every blob: /readyz and /metrics ask for them each second."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A partial index: the blobs that nobody doubts are not in it."""
    op.create_index("ix_blob_alarm", "blob", ["alarm_at"], sqlite_where=sa.text("alarm IS NOT NULL"))
