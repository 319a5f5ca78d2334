"""Pictures told apart by their own augmentations: MoCo v2 and v3."""
