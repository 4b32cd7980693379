"""First schema: tenants, users, models, queries, evidence, posteriors."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _people()
    _asked_and_said()
    _learned()


def _people() -> None:
    tenant = op.create_table(
        "tenant",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.bulk_insert(tenant, [{"name": "default"}])
    op.create_table(
        "user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("external_id", sa.String(256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("half_life_days", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_user_tenant_id"),
        sa.UniqueConstraint("tenant_id", "external_id", name="uq_user_tenant_id_external_id"),
        sqlite_autoincrement=True,
    )


def _asked_and_said() -> None:
    op.create_table(
        "model",
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("encoder", sa.Text(), nullable=False),
        sa.Column("encoder_revision", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_model"),
    )
    op.create_table(
        "query",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.JSON(), nullable=False),
        sa.Column("response_a", sa.JSON(), nullable=False),
        sa.Column("response_b", sa.JSON(), nullable=False),
        sa.Column("pool_a", sa.Integer()),
        sa.Column("pool_b", sa.Integer()),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("expected_information", sa.Double(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True)),
        sa.Column("choice", sa.String(16)),
        sa.PrimaryKeyConstraint("id", name="pk_query"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_query_tenant_id"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_query_user_id"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_query_fingerprint"),
        sa.UniqueConstraint("user_id", "seq", name="uq_query_user_id_seq"),
    )
    unanswered = sa.text("answered_at IS NULL")
    op.create_index(
        "uq_query_open",
        "query",
        ["user_id", "fingerprint"],
        unique=True,
        sqlite_where=unanswered,
        postgresql_where=unanswered,
    )


def _learned() -> None:
    op.create_table(
        "evidence",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("query_id", sa.String(36)),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("vectors", sa.LargeBinary()),
        sa.Column("vectors_shape", sa.JSON()),
        sa.Column("vectors_fingerprint", sa.String(128)),
        sa.PrimaryKeyConstraint("user_id", "id", name="pk_evidence"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_evidence_user_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_evidence_tenant_id"),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name="fk_evidence_query_id"),
    )
    op.create_index("ix_evidence_query_id", "evidence", ["query_id"])
    op.create_table(
        "posterior",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("mean", sa.LargeBinary(), nullable=False),
        sa.Column("cov", sa.LargeBinary(), nullable=False),
        sa.Column("evidence_count", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "fingerprint", name="pk_posterior"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_posterior_user_id"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_posterior_fingerprint"),
    )
