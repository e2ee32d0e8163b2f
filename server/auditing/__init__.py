"""Keeps the audit chain's signed head outside the database, and tells the chain to others. Never changes a row."""
