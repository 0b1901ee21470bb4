"""One module for each raw driver."""
