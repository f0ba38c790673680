"""What a model is worth: figures of merit on held-out data, and the gap to its teacher."""
