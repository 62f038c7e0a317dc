"""Parts of the benchmark of the Ultralytics plug-in."""
