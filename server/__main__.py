"""`python -m server` is `packhorse`."""

from server.cli import main

main()
