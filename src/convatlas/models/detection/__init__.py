"""Region-based detectors on any body: Faster, Mask and Keypoint R-CNN."""
