"""What every other room stands on: configuration, artifacts, ids, events, metrics, errors. No Ray, no model."""
