"""The stages of a run, one file each: what is made of what, under which settings. `pipeline.py` orders them."""
