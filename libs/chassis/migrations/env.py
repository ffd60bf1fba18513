"""Alembic's entry for every service: one schema, one connection, the version table inside the schema."""

from alembic import context
from sqlalchemy import create_engine, pool, text

_attributes = context.config.attributes
_url = str(_attributes["url"]).replace("postgresql://", "postgresql+psycopg://", 1)

with create_engine(_url, poolclass=pool.NullPool).connect() as connection:
    connection.execute(text(f"SET search_path TO {_attributes['schema']}"))
    # Two replicas' jobs may start at once: the second waits, then finds nothing to do.
    connection.execute(text("SELECT pg_advisory_lock(hashtext('sightline-migrate'))"))
    connection.commit()
    context.configure(connection=connection, version_table_schema=_attributes["schema"])
    with context.begin_transaction():
        context.run_migrations()
