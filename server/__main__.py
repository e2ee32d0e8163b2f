"""`python -m server` and the `packhorse` command."""

from server.lean import keep_pixels_out

keep_pixels_out()

from server.cli import main  # noqa: E402 - what it imports must find the pixel libraries gone

if __name__ == "__main__":
    main()
