"""A layer's three operations (transmit, feed back, Hebbian product), one kind of layer a file."""
