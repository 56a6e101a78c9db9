"""Many engines: who gets which request."""
