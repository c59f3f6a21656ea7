"""Files of events and items, read into columns and written again."""
