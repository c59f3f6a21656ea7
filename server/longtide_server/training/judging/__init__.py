"""How well a log can be foreseen: measured, divided, shown."""
