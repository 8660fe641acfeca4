"""Small-sample statistics over seeds."""
