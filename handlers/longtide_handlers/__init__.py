"""What runs inside TorchServe's worker processes."""
