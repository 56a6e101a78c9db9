"""KV as a compressed bitstream: what the technique `cachegen` is made of. No torch."""
