"""State that changes while serving: histories, item log."""
