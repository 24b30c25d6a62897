"""Where studies come from: cases on disk, cached features and phantom studies."""
