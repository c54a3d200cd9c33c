"""The training loop: loss, negatives, step, engines. Knows no Ray outside on_ray.py."""
