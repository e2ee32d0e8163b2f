"""`python -m server` and the `packhorse` command."""

from server.lean import loading

with loading():
    from server.cli import main

if __name__ == "__main__":
    main()
