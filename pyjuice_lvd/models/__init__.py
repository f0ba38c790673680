"""Models of whole images or rows: what they are asked, and EM on the joint model's p(x)."""
