"""Of which unit an officer is is asked in every press; without an index that was a look at everybody on duty. And who has been covert."""

from alembic import op

revision = "registry_0003"
down_revision = "registry_0002"


def upgrade() -> None:
    """Add what older code leaves alone."""
    op.execute("""
CREATE INDEX unit_hold_by_officer ON unit_hold (officer_key);
CREATE INDEX radio_hold_covert ON radio_hold (officer_key) WHERE visible_to <> '';
""")
