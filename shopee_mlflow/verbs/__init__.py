"""What can be done, one verb a file: each main function is the story of its job."""
