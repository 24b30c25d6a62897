"""The method: frozen encoder, text prior, fusion, jitter, decoder, and the detector of them all."""
