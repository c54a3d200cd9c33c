"""What a run and its serving will need, by arithmetic: bytes a worker by stage, nodes by load. Nothing is run."""
