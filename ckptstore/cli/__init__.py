"""Words into calls, errors into exit codes."""
