"""Around the engine: the HTTP server, later the gateway before it and the cluster of many."""
