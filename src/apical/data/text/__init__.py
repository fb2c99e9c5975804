"""Text as bytes: files read from a folder, whole files held out, and windows of them to learn from."""
