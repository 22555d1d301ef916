"""A stand-in for SQL Server over TDS: the real ODBC driver in front, sqlglot and DuckDB behind. Development only."""
