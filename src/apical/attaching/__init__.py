"""From a plain network to a learner, and back."""
