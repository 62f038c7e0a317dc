"""What a run leaves behind: signals, probes and the store they are written to."""
