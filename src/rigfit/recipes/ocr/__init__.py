"""Line images to text: TrOCR."""
