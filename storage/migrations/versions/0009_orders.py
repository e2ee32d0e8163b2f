"""Orders: what an image says of its patient, what is hidden, links undone, quarantine decided, jobs by priority."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_FROM_THE_STUDY = {
    "patient_id": "PatientID", "issuer_of_patient_id": "IssuerOfPatientID", "accession_number": "AccessionNumber"}


def upgrade() -> None:
    """Images of before are told by their study's attributes; what contradicted their order is found anew when asked."""
    for name in (*_FROM_THE_STUDY, "rejection_code", "rejected_at"):
        kind = {"rejection_code": sa.String(16), "rejected_at": sa.String(24)}.get(name, sa.Text())
        op.add_column("image", sa.Column(name, kind, nullable=True))
    op.create_index("ix_image_accession", "image", ["site", "accession_number"])
    op.add_column("image_order", sa.Column("undone_at", sa.String(24), nullable=True))
    op.add_column("job", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("quarantine", sa.Column("radiology_order_id", sa.String(64), nullable=True))
    op.add_column("quarantine", sa.Column("door", sa.String(8), nullable=False, server_default="tus"))
    image_id = sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True)
    op.add_column("quarantine", image_id)
    op.add_column("quarantine", sa.Column("decided_at", sa.String(24), nullable=True))
    op.execute("UPDATE quarantine SET door = 'dimse' WHERE session_id IS NULL")
    op.execute(
        "UPDATE quarantine SET radiology_order_id = "
        "(SELECT radiology_order_id FROM session WHERE session.session_id = quarantine.session_id)")
    for name, keyword in _FROM_THE_STUDY.items():
        op.execute(
            f"UPDATE image SET {name} = (SELECT json_extract(study.attributes, '$.{keyword}') FROM study "  # noqa: S608 - our own names
            "WHERE study.site = image.site AND study.study_instance_uid = image.study_instance_uid)")
    for flag in ("patient_mismatch", "accession_mismatch"):
        op.execute(f"UPDATE image SET flags = trim(replace(',' || flags || ',', ',{flag},', ','), ',')")  # noqa: S608 - our own names
    # written once from now on: an order that was named without its visit gets it later (contract §1)
    op.execute("DROP TRIGGER IF EXISTS session_visit_id_immutable")
