"""Items that no snapshot has learned: placed by what they say, moved by whom they please, tried out in answers."""
