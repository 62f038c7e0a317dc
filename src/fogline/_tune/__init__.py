"""The search over recipes; what the dashboard reads of it imports no PyTorch."""
