"""Uploads to the letter: deferred lengths, concatenation, compressed representations, the sweeper's clock."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new; a table whose columns become optional is rebuilt, its triggers made anew by env.py."""
    with op.batch_alter_table("session") as batch:
        batch.alter_column("file_size", existing_type=sa.BigInteger(), nullable=True)
    with op.batch_alter_table("upload") as batch:
        batch.alter_column("session_id", existing_type=sa.String(36), nullable=True)
        batch.alter_column("length_bytes", existing_type=sa.BigInteger(), nullable=True)
        batch.add_column(sa.Column("upload_concat", sa.Text(), nullable=True))
        batch.add_column(sa.Column("content_encoding", sa.String(8), nullable=True))
        batch.add_column(sa.Column("repr_digest", sa.Text(), nullable=True))
    op.create_index("ix_upload_principal", "upload", ["principal", "state"])
    op.create_table(
        "upload_part",
        sa.Column("final_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("part_id", sa.String(36), nullable=False),
        sa.ForeignKeyConstraint(["final_id"], ["upload.upload_id"], name=op.f("fk_upload_part_final_id")),
        sa.ForeignKeyConstraint(["part_id"], ["upload.upload_id"], name=op.f("fk_upload_part_part_id")),
        sa.PrimaryKeyConstraint("final_id", "position", name=op.f("pk_upload_part")),
    )
    op.create_index("ix_upload_part_part", "upload_part", ["part_id"])
    op.create_table(
        "clock",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("believed_at", sa.String(24), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_clock")),
    )
