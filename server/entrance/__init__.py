"""How others get in: tokens that an EMR mints for its browsers, one-time codes, logging in and out."""
