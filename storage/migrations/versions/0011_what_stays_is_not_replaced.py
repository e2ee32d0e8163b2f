"""What is never deleted cannot be replaced either, by no key that it has: triggers only, which env.py makes anew."""

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No table changes."""
