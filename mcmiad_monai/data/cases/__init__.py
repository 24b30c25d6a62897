"""Which studies a source holds, and which are used for what."""
