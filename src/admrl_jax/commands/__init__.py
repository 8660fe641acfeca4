"""The command lines: what they take, what they refuse, what they do to the process, exit codes."""
