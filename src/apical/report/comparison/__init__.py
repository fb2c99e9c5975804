"""A comparison as read from its folder, its page, its figures, and a picture for a README."""
