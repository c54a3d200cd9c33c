"""Hypothesis without deadlines: how long one example takes says nothing on a busy machine."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, max_examples=50)
settings.load_profile("steady")
