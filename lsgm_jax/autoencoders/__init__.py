"""x <-> z_0: encoders, decoders and likelihoods."""
