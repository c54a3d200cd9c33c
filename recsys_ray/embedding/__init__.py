"""Backbone features before training, item vectors after it."""
