"""The retrieval stage of a recommender on Ray: from raw logs to HTTP candidates."""
