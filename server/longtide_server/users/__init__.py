"""What is kept of users between requests: their histories at hand, and their encoder states."""
