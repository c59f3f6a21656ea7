"""What each source says of a user, as probabilities over items; what else vectors tell: likeness, time, behaviour."""
