"""What a teacher said of images, on disk: written once, verified, read by any number of students."""
