"""What keeps a store: backup and restore, repair, the index made anew, and what a doctor finds."""
