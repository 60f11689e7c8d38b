"""Tasks: what differs between one label for each image, several labels, boxes, masks, keypoints and clips."""
