"""Observation attacks behind one interface, and the threat models they obey."""
