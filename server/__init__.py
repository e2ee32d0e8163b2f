"""Packhorse, the server: decides what may happen next; bytes and facts are kept by `storage`."""
