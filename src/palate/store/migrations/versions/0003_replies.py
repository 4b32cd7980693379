"""Replies that were read: examples, their scores, the shared head and what it replays."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "example",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("evidence_id", sa.String(256), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("how", sa.String(16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "evidence_id", "number", name="pk_example"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_example_user_id"),
    )
    op.create_table(
        "score",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("evidence_id", sa.String(256), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("scorer", sa.String(64), nullable=False),
        sa.Column("satisfaction", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("target", sa.String(8), nullable=False),
        sa.Column("followed", sa.Double(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("training_target", sa.Double(), nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "evidence_id", "number", "version", name="pk_score"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_score_user_id"),
    )
    op.create_table(
        "shared_head",
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_shared_head"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_shared_head_fingerprint"),
    )
    op.create_table(
        "reservoir",
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("seen", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer()),
        sa.PrimaryKeyConstraint("fingerprint", "owner", name="pk_reservoir"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_reservoir_fingerprint"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_reservoir_user_id"),
    )
    op.create_table(
        "replay",
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("phi", sa.LargeBinary(), nullable=False),
        sa.Column("own", sa.Double(), nullable=False),
        sa.Column("target", sa.Double(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "owner", "slot", name="pk_replay"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_replay_fingerprint"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_replay_user_id"),
    )
    op.create_index("ix_replay_user_id", "replay", ["user_id"])
