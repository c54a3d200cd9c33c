"""Raw files in, a clean dataset artifact out: sources, cleaning, splits."""
