"""Tasks with one right answer; see `base.py`."""
