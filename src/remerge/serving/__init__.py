"""To production: sizes from memory, engines started, measured under load, names promoted."""
