"""Meta-learners behind one interface."""
