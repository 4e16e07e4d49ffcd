"""What is done to a network before training: input range, image size, pretrained weights, head, freezing."""
