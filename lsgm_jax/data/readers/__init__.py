"""What others have published, read: each module knows one collection's files, and none needs more than numpy."""
