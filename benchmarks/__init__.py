"""Measures Packhorse beside other servers. `make bench-uploads` is the way in."""
