"""Tells other systems what happened, by signed HTTP calls that are repeated until they are taken."""
