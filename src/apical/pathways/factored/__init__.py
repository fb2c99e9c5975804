"""Direct feedback that is made of less than D: `form` says how, `common` draws what is kept for it."""
