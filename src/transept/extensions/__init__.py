"""One module for each framework, with the same names in each."""
