"""The study: one network against mixtures of experts."""
