"""Encoders x -> z_0, decoders z_0 -> x, and decoder likelihoods."""
