"""What a principal's open uploads claim is told by an index alone: it is asked in each creation."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The index of a principal's uploads holds what is summed."""
    op.drop_index("ix_upload_principal", "upload")
    op.create_index("ix_upload_principal", "upload", ["principal", "state", "length_bytes", "offset_bytes"])
