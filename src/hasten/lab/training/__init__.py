"""The training room: small decoders from nothing, on a CPU or a GPU, safe against being killed at any moment."""
