"""The long campaigns, each a function of a folder, a seed and a count; a hundredth of each runs in `make test`."""
