"""Orders keep the form in which their ids first came; a session's visit that becomes known later has its form."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def _looks_like_a_number(column: str) -> str:
    return f"({column} NOT GLOB '*[^0-9]*' AND length({column}) <= 16 AND ({column} = '0' OR {column} NOT GLOB '0*'))"


def upgrade() -> None:
    """An order of before has the form that its first session gave it; one without sessions was named in a URL."""
    op.add_column("imaging_order", sa.Column("numeric_ids", sa.Text(), nullable=False, server_default=""))
    by_session = (
        "SELECT instr(',' || session.numeric_ids || ',', ',radiology_order_id,') > 0 FROM session "
        "WHERE session.site = imaging_order.site AND session.radiology_order_id = imaging_order.radiology_order_id "
        "ORDER BY session.created_at LIMIT 1")
    order_is_number = f"coalesce(({by_session}), {_looks_like_a_number('radiology_order_id')})"
    told = "json_extract(attributes, '$.visit_is_number')"
    visit_is_number = f"visit_id IS NOT NULL AND coalesce({told}, {_looks_like_a_number('visit_id')})"
    op.execute(
        "UPDATE imaging_order SET attributes = json_remove(attributes, '$.visit_is_number'), "  # noqa: S608 - our own names
        f"numeric_ids = trim(CASE WHEN {order_is_number} THEN 'radiology_order_id' ELSE '' END || ',' || "
        f"CASE WHEN {visit_is_number} THEN 'visit_id' ELSE '' END, ',')")
    op.execute("DROP TRIGGER IF EXISTS session_numeric_ids_immutable")
