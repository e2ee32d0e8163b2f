"""Commands for people, apart from serving: one file a group of them."""
