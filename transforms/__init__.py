"""Volume to slices and back: loading, checks, orientation, intensity, slicing, restoration."""
