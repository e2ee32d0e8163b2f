"""What the EMR said: orders, and to which visit they belong."""
