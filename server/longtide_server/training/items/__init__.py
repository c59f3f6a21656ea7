"""What is known of items, made into what an encoder and the content tower learn from."""
