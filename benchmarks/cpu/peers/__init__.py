"""The engines that are compared, one a module; see `peer.py`."""
