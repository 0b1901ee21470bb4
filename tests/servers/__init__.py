"""The real database servers that the tests use, and a proxy that breaks the line to them."""
