"""SQL-first sessions: SQL in, rows out, over a driver's own connection."""
