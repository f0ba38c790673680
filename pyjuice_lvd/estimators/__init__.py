"""scikit-learn estimators: fit, score, save and load, over arrays of images and tables."""
