"""Types, distributions, networks, returns, linear algebra, the axis over tasks, settings."""
