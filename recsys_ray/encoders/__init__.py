"""Towers: what turns an item or a history into a unit vector."""
