"""The Wasserstein GAN with RMSprop, many seeds in one program."""
