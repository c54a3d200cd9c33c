"""Ray Tune over whole pipeline runs."""
