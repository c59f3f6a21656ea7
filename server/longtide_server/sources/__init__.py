"""Where recommendations come from: each source turns what is known of a user into probabilities over items."""
