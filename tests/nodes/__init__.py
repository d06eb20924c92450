"""What is written on nodes, and put back."""
