"""The domain item: what it says, which changes it takes, which filters it passes; and texts, as arrays and cached."""
