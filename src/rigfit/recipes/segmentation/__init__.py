"""Objects that look like their background: image in, mask out (camouflaged-object segmentation with experts)."""
