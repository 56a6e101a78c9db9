"""The OpenAI-compatible HTTP server. It shares no process with the engine and imports no torch."""
