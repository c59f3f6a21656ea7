"""The domain item: what it says, which changes it takes, which filters it passes. Pure."""
