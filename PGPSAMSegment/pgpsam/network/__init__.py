"""The networks: encoders, the papers' modules, and the methods that combine them. Tensors in, tensors out."""
