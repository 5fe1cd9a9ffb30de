"""`make demo`: a real server, four acts, a table."""
