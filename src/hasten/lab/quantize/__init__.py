"""Making quantised checkpoints (`hasten quantize`)."""
