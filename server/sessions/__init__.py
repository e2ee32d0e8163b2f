"""Sessions: one attempt to bring one file. The server alone moves their status."""
