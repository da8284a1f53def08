"""Events and clips in a database: the only door to SQLAlchemy and Alembic, imported when used."""
