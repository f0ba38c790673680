"""How models are learned: by distillation, with or without growing, and the baselines."""
