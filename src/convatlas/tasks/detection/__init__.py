"""Tasks with objects in images: boxes, masks and keypoints."""
