"""What is known of items: a snapshot's own, and what was written since."""
