"""A posterior may be a mixture: the weights of its parts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("posterior", sa.Column("weights", sa.LargeBinary()))
