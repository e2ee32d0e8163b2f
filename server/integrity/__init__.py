"""Whether stored bytes are still those that were stored: read back, alarmed, scrubbed."""
