"""When stored bytes were read last, since when they are doubted, who waits for a read, receipts of images."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Blobs of before were never read by anybody but their ACKs; an alarm of before is older than any other."""
    op.add_column("blob", sa.Column("read_at", sa.String(24)))
    op.add_column("blob", sa.Column("alarm_at", sa.String(24)))
    op.create_table(
        "readback_wait",
        sa.Column("asker", sa.String(160), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("asked_at", sa.String(24), nullable=False),
        sa.PrimaryKeyConstraint("asker", "sha256", name="pk_readback_wait"))
    op.create_table(
        "image_receipt",
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("signed_at", sa.String(24), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_image_receipt_image_id"),
        sa.PrimaryKeyConstraint("image_id", name="pk_image_receipt"))
