"""Ways to quantise weights without data, as compressed-tensors stores them."""
