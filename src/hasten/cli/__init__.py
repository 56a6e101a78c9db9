"""The command line: one file a command. Only the standard library and typer are imported before a command runs."""
