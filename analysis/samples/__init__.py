"""What is looked at: images and labels by number or as a stream, shipped canvases, several processes."""
