"""Candidates of many users, to Parquet: a file a block of users, and a run that was killed goes on where it was."""
