"""What the sources beside the encoder know, and how much each counts."""
