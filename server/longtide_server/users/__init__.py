"""People: their histories and encoder states at hand, and the changes of the event log that these must feel."""
