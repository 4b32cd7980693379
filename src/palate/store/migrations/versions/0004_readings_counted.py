"""Readings are counted, so that a withdrawal shows; what a shared head has learned from is known for each model."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("user", sa.Column("readings", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "learned",
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("evidence_id", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "user_id", "evidence_id", name="pk_learned"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_learned_fingerprint"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_learned_user_id"),
    )
    # Posteriors that are kept name the count that they were computed at.
    read = 'SELECT COUNT(*) FROM score WHERE score.user_id = "user".id AND score.number = 0'
    op.execute(f'UPDATE "user" SET readings = ({read})')
