"""What the server counts, over all of its processes, and how Prometheus is told."""
