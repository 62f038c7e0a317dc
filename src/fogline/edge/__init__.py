"""From a run to a file for a device, and what that file really does there."""
