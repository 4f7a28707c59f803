"""MultiMix: semi-supervised classification and segmentation of chest X-rays in one network."""
