"""A model server that loads real weights and serves nothing worth reading, and the weights for it."""
