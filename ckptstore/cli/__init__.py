"""The command line: arguments into calls, errors into exit codes."""
