"""What is learned from: the catalogue, its splits, its photos and the batches made of them."""
