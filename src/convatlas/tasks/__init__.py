"""Tasks: what differs between classification, multi-label classification, detection, segmentation and so on."""
