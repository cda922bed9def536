"""Training data: finding images and labels, dividing them, drawing samples from them and changing those at random."""
