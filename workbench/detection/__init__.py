"""Object detection: boxes, preprocessing, model families, prediction, bundles and label errors."""
