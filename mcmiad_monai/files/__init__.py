"""Files: which can be read, written whole or not at all, and room for them."""
