"""Learning between `backward` and the optimizer's step: the clean pass, noisy passes, and what they leave untouched."""
